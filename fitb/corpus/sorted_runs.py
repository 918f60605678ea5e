"""External sort of cleaned documents, in bounded memory (Knuth, TAOCP 3, section 5.4).

Each input split becomes one sorted run: an Arrow stream of sorted blocks. The sort key of a
document is a keyed hash of its text, so neighbours are unrelated, the order of the input files does
not matter, and equal texts are adjacent. A shard is a range of keys: any process can gather any
shard alone, and the rows do not depend on how the input was split.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fitb.base.errors import DataError
from fitb.base.fsio import written_whole

SPLITS = ("train", "validation")
T = TypeVar("T")

_SCHEMA = pa.schema(
    [
        ("high", pa.uint64()),  # first and last 8 bytes of the key, big-endian
        ("low", pa.uint64()),
        ("file", pa.int32()),
        ("place", pa.int64()),
        ("text", pa.large_string()),
    ]
)


@dataclass
class Totals:
    """Counts of an input split, or of all of them.

    Args:
        documents: number of documents that were kept, by split (train, validation).
        bytes: UTF-8 bytes of their texts, by split.
        digest_sum: sum of the sha256 digests of their texts, modulo 2**256: order-independent.
        dropped: number of dropped documents, by rule.
        changed: number of documents that a cleaning step changed, by step.
    """

    documents: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    digest_sum: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)

    @property
    def fingerprint(self) -> str:
        """Order-independent hash of all cleaned texts, repeated ones included."""
        return f"{self.digest_sum:064x}"


@dataclass(frozen=True)
class Documents:
    """The n distinct documents of one shard, in order.

    Args:
        texts: (n,) large_string, normalised texts.
        file: (n,) int32, numbers of the input files.
        place: (n,) int64, positions in those files, as in `input_splits.Document`.
        duplicates: (m, 2) int64, file and place of each document dropped as an exact duplicate.
    """

    texts: pa.Array
    file: NDArray[np.int32]
    place: NDArray[np.int64]
    duplicates: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)

    def without(self, ordinals: NDArray[np.int64]) -> Documents:
        """Return all documents except those with the given ordinals."""
        return self.only(np.delete(np.arange(len(self)), ordinals))

    def only(self, ordinals: NDArray[np.int64]) -> Documents:
        """Return the documents with the given ordinals."""
        texts = self.texts.take(pa.array(ordinals))
        return Documents(texts, self.file[ordinals], self.place[ordinals], self.duplicates)


def text_digest(text: str) -> bytes:
    """Return the sha256 of a text in UTF-8 (32 bytes), which identifies a document."""
    return hashlib.sha256(text.encode()).digest()


def split_of(digest: bytes, validation_fraction: float) -> str:
    """Return the split of a document, which depends on its text alone.

    Args:
        digest: sha256 of the text.
        validation_fraction: expected share of documents in the validation split.
    """
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if place < validation_fraction else "train"


def order_key(digest: bytes, seed: int) -> bytes:
    """Return the 16-byte sort key of a document."""
    key = (seed % 2**64).to_bytes(8, "big")
    return hashlib.blake2b(digest, key=key, digest_size=16).digest()


def write_run(
    path: Path,
    documents: Iterable[tuple[int, int, str]],
    *,
    seed: int,
    validation_fraction: float,
    block_bytes: int,
) -> Totals:
    """Write documents as one sorted run, atomically; return its counts.

    Args:
        path: file to write; an existing one is replaced.
        documents: (file, place, normalised text), iterated once.
        seed: seed of the sort order.
        validation_fraction: expected share of documents in the validation split.
        block_bytes: bytes of text sorted in memory at a time.
    """
    kept = Totals()
    with (
        written_whole(path) as part,
        pa.OSFile(str(part), "wb") as sink,
        pa.ipc.new_stream(sink, _SCHEMA) as writer,
    ):
        for block in batches(documents, block_bytes, lambda document: len(document[2])):
            for batch in _sorted(block, seed, validation_fraction, kept):
                writer.write_batch(batch)
    return kept


def batches(items: Iterable[T], most: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield consecutive items in lists, each of which ends when its sizes reach `most`."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sorted(
    block: list[tuple[int, int, str]], seed: int, validation_fraction: float, kept: Totals
) -> Iterator[pa.RecordBatch]:
    """Yield a batch for each split, even an empty one, sorted by key, file and place."""
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
        columns = {
            "high": keys[:, 0].astype(np.uint64),
            "low": keys[:, 1].astype(np.uint64),
            "file": [row[1] for row in rows],
            "place": [row[2] for row in rows],
            "text": texts,
        }
        yield pa.RecordBatch.from_pydict(columns, _SCHEMA)


def gather(runs: Sequence[Path], split: str, number: int, num_shards: int) -> Documents:
    """Return the distinct documents of one shard, in order.

    Args:
        runs: all sorted runs, in any order.
        split: train or validation.
        number: number of the shard in its split; shard i of n has the i-th of n ranges of keys.
        num_shards: number of shards of the split.
    Raises: DataError if a sorted run is damaged.
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


def _range(path: Path, split: int, begin: int, end: int) -> Iterator[pa.RecordBatch]:
    """Yield the slice of each block of a split whose keys are in begin .. end - 1."""
    try:
        with pa.memory_map(str(path)) as source:
            for number, batch in enumerate(pa.ipc.open_stream(source)):
                if number % len(SPLITS) == split:
                    keys = batch["high"].to_numpy()
                    first = int(np.searchsorted(keys, np.uint64(begin)))
                    last = len(keys) if end >= 2**64 else int(np.searchsorted(keys, np.uint64(end)))
                    yield batch.slice(first, last - first)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is damaged ({error}); remove its folder and start again"
        ) from error
