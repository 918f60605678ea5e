"""Reading all that a source plans, one input split after the other."""

import bz2
import gzip
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from fitb.corpus.sources import plan, read_split

LIMIT = 1e-6 * 40  # megabytes: 40 bytes
COMPRESSORS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def read_all(source, **sizes):
    planned = plan(source, **sizes)
    assert [split.number for split in planned.splits] == list(range(len(planned.splits)))
    return [found for split in planned.splits for found in read_split(source, planned, split)]


def texts(source, **sizes):
    return [found.text for found in read_all(source, **sizes)]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def parquet(path, values, column="text", rows=7, kind=None):
    table = pa.table({"id": list(range(len(values))), column: pa.array(values, kind)})
    pq.write_table(table, path, row_group_size=rows)
    return str(path)
