"""Exact duplicates, found by the hash of normalised text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator


def text_digest(text: str) -> bytes:
    """Return the sha256 of a text's UTF-8, 32 bytes: the identity of a document."""
    return hashlib.sha256(text.encode()).digest()


def unique(texts: Iterable[str]) -> Iterator[tuple[bytes, str]]:
    """Yield (digest, text) of the first of every group of equal texts, as they come.

    Memory: about 100 bytes for each different text.
    """
    seen: set[bytes] = set()
    for text in texts:
        digest = text_digest(text)
        short = digest[:16]
        if short not in seen:
            seen.add(short)
            yield digest, text
