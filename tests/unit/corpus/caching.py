"""A cache that is small, and what lies in it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from fitb.corpus.cache import CacheSettings
from fitb.corpus.shards import ShardSet

NUM_ROWS, SHARD_ROWS = 60, 6
ROOM = 4.5  # shards that the small cache holds


def bound(local: Path) -> int:
    return int(ROOM * max(path.stat().st_size for path in local.glob("train-0000?.arrow")))


def kept(settings: CacheSettings) -> dict[str, int]:
    """Bytes of every whole file and part in a cache now."""
    found = {}
    for path in Path(str(settings.folder)).rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            if path.suffix in (".arrow", ".part"):
                found[path.name] = path.stat().st_size
    return found


def expected_rows(local: Path, asked: np.ndarray) -> np.ndarray:
    return ShardSet.open(local, "train").read(asked).input_ids
