"""Which row is read when: a keyed two-level permutation with O(1) memory and O(1) seek.

Position p of a run is position p mod N of epoch p div N. In each epoch the shards are permuted, cut
into windows of a few shards, and the rows of a window are permuted among each other, so that a
filesystem sees whole shards in turn. World size, workers and micro-batches are unknown here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fitb import rng

_SHARDS, _ROWS = 1, 2  # what a key is for


def rows_at(
    positions: NDArray[np.int64], *, shard_rows: Sequence[int], seed: int, window_shards: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the epoch and the row at each position of a run.

    Args:
        positions: (n,) int64, each at least 0: rows consumed before this one.
        shard_rows: rows in each shard, in the manifest's order.
        seed: of the run.
        window_shards: shards whose rows are shuffled among each other.
    Returns: epochs (n,) and row numbers (n,) in 0 .. sum(shard_rows) - 1, int64; over one epoch
        the row numbers are a permutation.
    """
    epochs, places = np.divmod(positions, int(sum(shard_rows)))
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = _rows_of_epoch(
            places[here], int(epoch), np.asarray(shard_rows, np.int64), seed, window_shards
        )
    return epochs, rows


def _rows_of_epoch(
    places: NDArray[np.int64],
    epoch: int,
    shard_rows: NDArray[np.int64],
    seed: int,
    window_shards: int,
) -> NDArray[np.int64]:
    num_shards = len(shard_rows)
    key = int(rng.keyed(seed, _SHARDS, epoch))
    shards = rng.permute(np.arange(num_shards), num_shards, key)  # shards in this epoch's order
    ends = np.cumsum(shard_rows[shards])
    first_row = np.concatenate([[0], np.cumsum(shard_rows)])[shards]  # of each shard in the corpus
    last = np.minimum(np.arange(0, num_shards, window_shards) + window_shards, num_shards) - 1
    window_ends = ends[last]
    window_begins = np.concatenate([[0], window_ends[:-1]])
    windows = np.searchsorted(window_ends, places, side="right")
    rows = np.empty_like(places)
    for window in np.unique(windows):
        here = windows == window
        begin, size = window_begins[window], window_ends[window] - window_begins[window]
        window_key = int(rng.keyed(seed, _ROWS, epoch, window))
        shuffled = begin + rng.permute(places[here] - begin, int(size), window_key)
        slot = np.searchsorted(ends, shuffled, side="right")  # which shard, in this epoch's order
        rows[here] = first_row[slot] + shuffled - (ends[slot] - shard_rows[shards[slot]])
    return rows
