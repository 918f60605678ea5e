"""Which documents were left out, and why: a table of file, place and rule, never of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fitb.base.fsio import naming_full_disk, written_whole

SCHEMA = pa.schema([("file", pa.int32()), ("place", pa.int64()), ("rule", pa.string())])


def write_dropped(path: Path, rows: Iterable[tuple[int, int, str]]) -> None:
    """Write the documents that a unit or a shard left out: file, place, rule."""
    table = pa.Table.from_pylist(
        [dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA
    )
    with written_whole(path) as part, pa.ipc.new_stream(str(part), SCHEMA) as writer:
        writer.write_table(table)


def join_dropped(path: Path, parts: Sequence[Path]) -> None:
    """Join such tables into one Parquet file, with one of them in memory at a time."""
    with naming_full_disk(path), pq.ParquetWriter(path, SCHEMA) as writer:
        for part in parts:
            with pa.memory_map(str(part)) as source, pa.ipc.open_stream(source) as reader:
                writer.write_table(reader.read_all())
