"""A cache that is small, and what lies in it."""

import contextlib
from pathlib import Path

from fitb.shards.shard_set import ShardSet

NUM_ROWS, SHARD_ROWS = 60, 6
ROOM = 4.5  # shards that the small cache holds


def bound(local):
    return int(ROOM * max(path.stat().st_size for path in local.glob("train-0000?.arrow")))


def kept(settings):
    """Bytes of every whole file and part in a cache now."""
    found = {}
    for path in Path(settings.folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            if path.suffix in (".arrow", ".part"):
                found[path.name] = path.stat().st_size
    return found


def expected_rows(local, asked):
    return ShardSet.open(local, "train").read(asked).input_ids
