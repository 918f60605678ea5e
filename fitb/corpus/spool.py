"""Documents on disk between reading and writing, in their final order, in bounded memory.

The order is that of a keyed hash of the text, so neighbours are unrelated and the order of the
files does not count. A document's bucket file is the leading bits of its hash; a bucket is sorted
in memory when it is read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fitb.corpus.dedupe import unique
from fitb.corpus.normalize import normalize
from fitb.corpus.old_sources import Document

SPLITS = ("train", "validation")

_NUM_BUCKETS = 64  # two splits keep 128 files open; a bucket of Wikipedia is about 250 MB
_HEAD = struct.Struct("<16sI")
_LOG_EVERY = 100_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spool:
    """Normalised, different documents, split and ready to be read in order.

    Args:
        folder: holds the bucket files.
        documents: number by split.
        duplicates: texts left out because they came before.
        empty: texts of which normalisation left nothing.
        fingerprint: of the set of texts, whatever their order; sha256 sums, hexadecimal.
    """

    folder: Path
    documents: dict[str, int]
    duplicates: int
    empty: int
    fingerprint: str

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts of a split in order."""
        for number in range(_NUM_BUCKETS):
            for _, text in sorted(_read_bucket(_bucket(self.folder, split, number))):
                yield text.decode()


def split_of(digest: bytes, validation_fraction: float) -> str:
    """Return the side of a document, by its text alone: no seed, no position.

    Args:
        digest: of the text, see dedupe.text_digest.
        validation_fraction: expected share of documents for validation.
    """
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if place < validation_fraction else "train"


def order_key(digest: bytes, seed: int) -> bytes:
    """Return 16 bytes by which documents are sorted."""
    key = (seed % 2**64).to_bytes(8, "big")
    return hashlib.blake2b(digest, key=key, digest_size=16).digest()


def spool(
    documents: Iterable[Document], folder: Path, *, seed: int, validation_fraction: float
) -> Spool:
    """Normalise, deduplicate, split and store documents.

    Args:
        documents: read once.
        folder: exists and is empty.
        seed: of the order.
        validation_fraction: expected share of documents for validation.
    """
    counts = {"read": 0, "empty": 0}
    kept = dict.fromkeys(SPLITS, 0)
    total = 0
    with contextlib.ExitStack() as stack:
        buckets: dict[Path, BinaryIO] = {}
        for digest, text in unique(_normal_texts(documents, counts)):
            split, key = split_of(digest, validation_fraction), order_key(digest, seed)
            path = _bucket(folder, split, key[0] * _NUM_BUCKETS // 256)
            if path not in buckets:
                buckets[path] = stack.enter_context(open(path, "wb"))
            encoded = text.encode()
            buckets[path].write(_HEAD.pack(key, len(encoded)) + encoded)
            kept[split] += 1
            total = (total + int.from_bytes(digest, "big")) % 2**256
    duplicates = counts["read"] - counts["empty"] - sum(kept.values())
    return Spool(folder, kept, duplicates, counts["empty"], f"{total:064x}")


def _normal_texts(documents: Iterable[Document], counts: dict[str, int]) -> Iterator[str]:
    for document in documents:
        counts["read"] += 1
        if counts["read"] % _LOG_EVERY == 0:
            logger.info("documents_read=%d", counts["read"])
        text = normalize(document.text)
        if text:
            yield text
        else:
            counts["empty"] += 1


def _bucket(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:02d}"


def _read_bucket(path: Path) -> Iterator[tuple[bytes, bytes]]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        while head := file.read(_HEAD.size):
            key, size = _HEAD.unpack(head)
            yield key, file.read(size)
