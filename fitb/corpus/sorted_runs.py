"""Cleaned documents on disk between reading and writing, sorted, so that memory stays bounded.

Each input split becomes one file of sorted blocks (a sorted run, as in external sorting; Knuth, The
Art of Computer Programming 3, section 5.4). The key of a document is a keyed hash of its text:
neighbours are unrelated, the order of the files does not count, and equal texts meet. A shard is a
range of keys, so any process can gather any shard by itself, and how the input was split leaves no
trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fitb.base.errors import DataError
from fitb.base.fsio import written_whole

SPLITS = ("train", "validation")

_SCHEMA = pa.schema(
    [
        ("high", pa.uint64()),  # the key's first and last 8 bytes, big-endian
        ("low", pa.uint64()),
        ("file", pa.int32()),
        ("place", pa.int64()),
        ("text", pa.large_string()),
    ]
)


@dataclass
class Kept:
    """What a sorted run holds.

    Args:
        documents: number by split.
        bytes: of text in UTF-8, by split.
        digest_sum: of the sha256 sums of all texts, modulo 2**256: the same in any order.
    """

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    digest_sum: int = 0


@dataclass(frozen=True)
class Documents:
    """The different documents of one shard, in order.

    Args:
        texts: (n,) normalised.
        file: (n,) int32, number of the input file.
        place: (n,) int64, where in that file.
        duplicates: (m, 2) int64, file and place of each text left out because another is equal.
    """

    texts: pa.Array
    file: NDArray[np.int32]
    place: NDArray[np.int64]
    duplicates: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    def without(self, ordinals: NDArray[np.int64]) -> Documents:
        """Return the documents but for some."""
        return self.only(np.delete(np.arange(len(self)), ordinals))

    def only(self, ordinals: NDArray[np.int64]) -> Documents:
        """Return some of the documents."""
        texts = self.texts.take(pa.array(ordinals))
        return Documents(texts, self.file[ordinals], self.place[ordinals], self.duplicates)


def text_digest(text: str) -> bytes:
    """Return the sha256 of a text's UTF-8, 32 bytes: the identity of a document."""
    return hashlib.sha256(text.encode()).digest()


def split_of(digest: bytes, validation_fraction: float) -> str:
    """Return the side of a document, by its text alone: no seed, no position.

    Args:
        digest: of the text.
        validation_fraction: expected share of documents for validation.
    """
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if place < validation_fraction else "train"


def order_key(digest: bytes, seed: int) -> bytes:
    """Return 16 bytes by which documents are sorted."""
    key = (seed % 2**64).to_bytes(8, "big")
    return hashlib.blake2b(digest, key=key, digest_size=16).digest()


def write_run(
    path: Path,
    documents: Iterable[tuple[int, int, str]],
    *,
    seed: int,
    validation_fraction: float,
    block_bytes: int,
) -> Kept:
    """Sort documents in blocks and write them; the file appears whole or not at all.

    Args:
        path: written anew.
        documents: (file, place, normalised text), read once.
        seed: of the order.
        validation_fraction: expected share of documents for validation.
        block_bytes: of text held in memory at a time.
    """
    kept = Kept()
    with (
        written_whole(path) as part,
        pa.OSFile(str(part), "wb") as sink,
        pa.ipc.new_stream(sink, _SCHEMA) as writer,
    ):
        for block in _blocks(documents, block_bytes):
            for batch in _sorted(block, seed, validation_fraction, kept):
                writer.write_batch(batch)
    return kept


def _blocks(
    documents: Iterable[tuple[int, int, str]], block_bytes: int
) -> Iterator[list[tuple[int, int, str]]]:
    block: list[tuple[int, int, str]] = []
    size = 0
    for document in documents:
        block.append(document)
        size += len(document[2])
        if size >= block_bytes:
            yield block
            block, size = [], 0
    if block:
        yield block


def _sorted(
    block: list[tuple[int, int, str]], seed: int, validation_fraction: float, kept: Kept
) -> Iterator[pa.RecordBatch]:
    """Yield a batch for each split, sorted by key, file and place; empty ones too."""
    sides: dict[str, list[tuple[bytes, int, int, str]]] = {split: [] for split in SPLITS}
    for file, place, text in block:
        digest = text_digest(text)
        sides[split_of(digest, validation_fraction)].append(
            (order_key(digest, seed), file, place, text)
        )
        kept.digest_sum = (kept.digest_sum + int.from_bytes(digest, "big")) % 2**256
    for split, rows in sides.items():
        rows.sort()
        keys = np.frombuffer(b"".join(row[0] for row in rows), dtype=">u8").reshape(-1, 2)
        texts = pa.array([row[3] for row in rows], pa.large_string())
        kept.documents[split] += len(rows)
        kept.bytes[split] += pc.sum(pc.binary_length(texts)).as_py() or 0
        yield pa.RecordBatch.from_arrays(
            [
                pa.array(keys[:, 0].astype(np.uint64)),
                pa.array(keys[:, 1].astype(np.uint64)),
                pa.array([row[1] for row in rows], pa.int32()),
                pa.array([row[2] for row in rows], pa.int64()),
                texts,
            ],
            schema=_SCHEMA,
        )


def gather(runs: Sequence[Path], split: str, number: int, num_shards: int) -> Documents:
    """Return the different documents of one shard, in order.

    Args:
        runs: all of them; their order does not count.
        split: train or validation.
        number: of the shard, in 0 .. num_shards - 1: an equal range of keys each.
        num_shards: of the split.
    Raises: DataError where a run is damaged.
    """
    begin, end = (-(-(bound << 64) // num_shards) for bound in (number, number + 1))
    parts = [part for run in runs for part in _range(run, SPLITS.index(split), begin, end)]
    table = pa.Table.from_batches(parts, _SCHEMA).combine_chunks()
    high, low, file, place = (table[name].to_numpy() for name in _SCHEMA.names[:4])
    order = np.lexsort((place, file, low, high))
    high, low, file, place = high[order], low[order], file[order], place[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    texts = table["text"].combine_chunks().take(order[first])
    again = np.stack([file[~first], place[~first]], axis=1).astype(np.int64)
    return Documents(texts, file[first], place[first], again)


def _range(run: Path, side: int, begin: int, end: int) -> Iterator[pa.RecordBatch]:
    """Yield, of each block of a run, the slice of one split whose keys lie in begin .. end - 1."""
    try:
        with pa.memory_map(str(run)) as source:
            reader = pa.ipc.open_stream(source)
            for number, batch in enumerate(reader):
                if number % len(SPLITS) == side:
                    keys = batch["high"].to_numpy()
                    first = int(np.searchsorted(keys, np.uint64(begin)))
                    last = len(keys) if end >= 2**64 else int(np.searchsorted(keys, np.uint64(end)))
                    yield batch.slice(first, last - first)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{run} is damaged ({error}); remove its folder and start again") from error
