"""Order of the rows: a keyed two-level permutation with O(1) memory and O(1) seek.

Position p of a run is position p mod N of epoch p div N. In each epoch the shards are permuted and
grouped into windows of a few shards, and the rows of a window are shuffled, so that files are read
one window after another. The order does not depend on world size, workers or micro-batches.

Legend: n positions, S shards, W windows of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fitb.base import rng

_SHARDS, _ROWS = 1, 2  # purposes of random keys


def rows_at(
    positions: NDArray[np.int64],
    *,
    shard_rows: Sequence[int] | NDArray[np.int64],
    seed: int,
    window_shards: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the epoch and the row number of each position of a run.

    Args:
        positions: (n,) int64, at least 0: number of rows read before this one.
        shard_rows: (S,) int64, rows in each shard, in the order of the manifest.
        seed: seed of the run.
        window_shards: number of shards whose rows are shuffled together.
    Returns: epochs (n,) and row numbers (n,) in 0 .. sum(shard_rows) - 1, int64; over one epoch
        the row numbers are a permutation.
    """
    sizes = np.asarray(shard_rows, np.int64)
    epochs, places = np.divmod(positions, int(sizes.sum()))
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        shards = _shards_of_epoch(sizes.tobytes(), int(epoch), seed, window_shards)
        rows[here] = _rows_of_epoch(places[here], int(epoch), shards, seed)
    return epochs, rows


def windows_between(
    begin: int,
    end: int,
    *,
    shard_rows: Sequence[int] | NDArray[np.int64],
    seed: int,
    window_shards: int,
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the windows of a range of positions: position after the last row, shard numbers.

    Args:
        begin: first position, in the first window.
        end: position after the last one, which is in the last window.
        shard_rows: as in rows_at.
        seed: as in rows_at.
        window_shards: as in rows_at.
    Yields: shard numbers as (at most window_shards,) int64, in the order of the epoch; the last
        window of an epoch may be shorter.
    """
    sizes = np.asarray(shard_rows, np.int64)
    num_rows = int(sizes.sum())
    for epoch in range(begin // num_rows, -(-end // num_rows)):
        shards = _shards_of_epoch(sizes.tobytes(), epoch, seed, window_shards)
        for number, place in enumerate(shards.window_ends.tolist()):
            position = epoch * num_rows + place
            if position > begin:
                first = number * window_shards
                yield position, shards.numbers[first : first + window_shards].copy()
            if position >= end:
                return


@dataclass(frozen=True)
class _Shards:
    """The shards of an epoch, in its order; ends are positions in it after the last row."""

    numbers: NDArray[np.int64]  # (S,)
    ends: NDArray[np.int64]  # (S,)
    shift: NDArray[np.int64]  # (S,) row number minus position in the epoch, constant in a shard
    window_ends: NDArray[np.int64]  # (W,)


@lru_cache(maxsize=4)  # a batch touches two epochs, a fetcher one; 0.5 MB each at 15,000 shards
def _shards_of_epoch(shard_rows: bytes, epoch: int, seed: int, window_shards: int) -> _Shards:
    sizes = np.frombuffer(shard_rows, np.int64)
    num_shards = len(sizes)
    key = int(rng.keyed(seed, _SHARDS, epoch))
    numbers = rng.permute(np.arange(num_shards), num_shards, key)
    ends = np.cumsum(sizes[numbers])
    first_row = np.cumsum(sizes) - sizes
    last = np.minimum(np.arange(0, num_shards, window_shards) + window_shards, num_shards) - 1
    return _Shards(
        numbers=numbers,
        ends=ends,
        shift=first_row[numbers] - (ends - sizes[numbers]),
        window_ends=ends[last],
    )


def _rows_of_epoch(
    places: NDArray[np.int64], epoch: int, shards: _Shards, seed: int
) -> NDArray[np.int64]:
    window_begins = np.concatenate([[0], shards.window_ends[:-1]])
    windows = np.searchsorted(shards.window_ends, places, side="right")
    rows = np.empty_like(places)
    for window in np.unique(windows):
        here = windows == window
        begin, size = window_begins[window], shards.window_ends[window] - window_begins[window]
        key = int(rng.keyed(seed, _ROWS, epoch, window))
        shuffled = begin + rng.permute(places[here] - begin, int(size), key)
        rows[here] = shuffled + shards.shift[np.searchsorted(shards.ends, shuffled, side="right")]
    return rows
