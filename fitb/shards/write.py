"""Writing of shard files: rows, and the table of their source documents.

Dimensions: B rows, L length, n documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fitb.shards.mmap import id_type

DIGEST_BYTES = 16  # of a document's sha256


@dataclass(frozen=True)
class Columns:
    """Rows as columns.

    Args:
        input_ids: (B, L) int64, token ids.
        word_starts: (B, L) bool, true on the first subword of each word.
        doc_begin: (B,) int64, ordinal of the first document with tokens in the row.
        offset_begin: (B, L) int32, first character of each token in its document; 0 if special.
        offset_end: (B, L) int32, one past the last character of each token; 0 if special.
    """

    input_ids: NDArray[np.int64]
    word_starts: NDArray[np.bool_]
    doc_begin: NDArray[np.int64]
    offset_begin: NDArray[np.int32]
    offset_end: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.input_ids)


def write_shard(path: Path, rows: Columns, *, vocab_size: int, with_offsets: bool) -> int:
    """Write rows as one Arrow file; equal rows give equal bytes.

    Args:
        path: file to write.
        rows: at least one row.
        vocab_size: vocabulary size, which decides the type of input_ids.
        with_offsets: whether to write the offset columns, as for validation.
    Returns: size of the file in bytes.
    """
    columns: dict[str, pa.Array] = {
        "input_ids": _lists(rows.input_ids.astype(id_type(vocab_size))),
        "word_starts": _lists(np.packbits(rows.word_starts, axis=1, bitorder="little")),
        "doc_begin": pa.array(rows.doc_begin),
    }
    if with_offsets:
        columns["offset_begin"] = _lists(rows.offset_begin)
        columns["offset_end"] = _lists(rows.offset_end)
    return _write_stream(path, columns)


def write_documents(
    path: Path,
    file: NDArray[np.int32],
    place: NDArray[np.int64],
    chars: NDArray[np.int32],
    digest: NDArray[np.uint8],
) -> int:
    """Write the source of each document of a shard, in the shard's order.

    Args:
        path: file to write.
        file: (n,) int32, number of the input file.
        place: (n,) int64, position in that file.
        chars: (n,) int32, number of characters of the normalised text.
        digest: (n, 16) uint8, first half of the sha256 of the normalised text in UTF-8.
    Returns: size of the file in bytes.
    """
    digests = pa.py_buffer(np.ascontiguousarray(digest, dtype=np.uint8))
    columns = {
        "file": pa.array(file, pa.int32()),
        "place": pa.array(place, pa.int64()),
        "chars": pa.array(chars, pa.int32()),
        "digest": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(DIGEST_BYTES), len(digest), [None, digests]
        ),
    }
    return _write_stream(path, columns)


def _write_stream(path: Path, columns: dict[str, pa.Array]) -> int:
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    with path.open("wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    return path.stat().st_size


def _lists(values: NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.arrow"
