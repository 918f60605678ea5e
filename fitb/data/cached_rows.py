"""In-memory copy of the validation rows, so that evaluation does no I/O."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fitb.shards.shard_set import Rows, ShardSet

_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class CachedRows:
    """Some rows of a split in memory, 5 L bytes each.

    Args:
        numbers: (n,) int64, row numbers, ascending.
        input_ids: (n, L) int32, token ids.
        word_starts: (n, L) bool, true on the first subword of each word.
    """

    numbers: NDArray[np.int64]
    input_ids: NDArray[np.int32]
    word_starts: NDArray[np.bool_]

    @classmethod
    def of(cls, shards: ShardSet, rows: NDArray[np.int64]) -> CachedRows:
        """Read the rows with the given numbers, in any order and with repeats.

        Raises: as ShardSet.read.
        """
        numbers = np.unique(rows)
        ids = np.empty((len(numbers), shards.length), dtype=np.int32)
        starts = np.empty((len(numbers), shards.length), dtype=bool)
        for begin in range(0, len(numbers), _BLOCK_ROWS):
            block = slice(begin, begin + _BLOCK_ROWS)
            read = shards.read(numbers[block])
            ids[block], starts[block] = read.input_ids, read.word_starts
        return cls(numbers, ids, starts)

    def read(self, rows: NDArray[np.int64]) -> Rows:
        """Return cached rows in the given order."""
        places = np.searchsorted(self.numbers, rows)
        return Rows(self.input_ids[places].astype(np.int64), self.word_starts[places])
