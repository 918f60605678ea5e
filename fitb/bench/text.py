"""Synthetic corpora of any size: lines of docstrings on this machine, resampled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fitb.base import rng
from fitb.corpus.sources import Document, TextSource, plan, read_split

_POOL_MB = 4.0
_SHARDS_MB = 16.0
_LINE_CHARS = 20
_DOCUMENT_CHARS = 1500


def pool() -> list[str]:
    """Return distinct lines of docstrings of at least 20 characters."""
    source = TextSource("docstrings")
    splits = plan(source, max_mb=_POOL_MB)
    lines: dict[str, None] = {}
    for split in splits.splits:
        for found in read_split(source, splits, split):
            if isinstance(found, Document):
                for line in found.text.splitlines():
                    if len(line.strip()) >= _LINE_CHARS:
                        lines[line.strip()] = None
    return list(lines)


def documents(lines: list[str], num_bytes: int, seed: int) -> Iterator[str]:
    """Yield one-line documents, resampled from `lines`, of about `num_bytes` of UTF-8 in all."""
    total = number = 0
    while total < num_bytes:
        picks = rng.keyed(seed, number, np.arange(64)) % np.uint64(len(lines))
        parts: list[str] = []
        size = 0
        for pick in picks:
            parts.append(lines[int(pick)])
            size += len(parts[-1]) + 1
            if size >= _DOCUMENT_CHARS:
                break
        text = " ".join(parts)
        total += len(text.encode()) + 1
        number += 1
        yield text


def shards_of_docstrings(folder: Path, length: int, vocabulary: int) -> Path:
    """Prepare a shard set of docstrings in `folder`; return its path.

    Args:
        folder: existing scratch folder.
        length: tokens per row.
        vocabulary: number of entries of the vocabulary.
    """
    from fitb.corpus.prepare import prepare
    from fitb.corpus.prepare_config import PrepareConfig

    out = folder / "shards"
    prepare(
        PrepareConfig(
            out=str(out),
            source="docstrings",
            max_mb=_SHARDS_MB,
            vocab_size=vocabulary,
            length=length,
            validation_fraction=0.01,
        )
    )
    return out
