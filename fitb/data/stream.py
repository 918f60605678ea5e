"""From a step number to this rank's micro-batches, read ahead of need by one thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fitb.config import MaskConfig
from fitb.corpus.shards import ShardSet
from fitb.data.masking import Batch, Vocabulary, mask_rows
from fitb.data.order import rows_at
from fitb.world import World


def positions_of_rank(step: int, global_batch: int, world: World) -> NDArray[np.int64]:
    """Positions of the run that this rank reads in a step: a contiguous share of the batch.

    Args:
        step: 0-based.
        global_batch: a multiple of the world size.
    """
    share = global_batch // world.size
    begin = step * global_batch + world.rank * share
    return np.arange(begin, begin + share, dtype=np.int64)


class RowStream:
    """The training rows of one rank.

    Args:
        shards: the training split.
        global_batch: rows per step over all ranks.
        micro_batch: rows per batch yielded.
        prefetch_steps: steps read ahead.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        vocabulary: Vocabulary,
        mask: MaskConfig,
        world: World,
        global_batch: int,
        micro_batch: int,
        window_shards: int,
        prefetch_steps: int,
        seed: int,
    ) -> None:
        self._shards, self._vocabulary, self._mask, self._world = shards, vocabulary, mask, world
        self._global_batch, self._micro_batch = global_batch, micro_batch
        self._window_shards, self._seed = window_shards, seed
        self._prefetch_steps = prefetch_steps
        self.waited_s = 0.0  # in iter_from, for rows that were not there yet

    def micro_batches(self, step: int) -> list[Batch]:
        """Return what this rank consumes in a step (0-based); any step, in any order."""
        positions = positions_of_rank(step, self._global_batch, self._world)
        epochs, rows = rows_at(
            positions,
            shard_rows=self._shards.shard_rows,
            seed=self._seed,
            window_shards=self._window_shards,
        )
        read = self._shards.read(rows)
        batch = mask_rows(
            read.input_ids,
            read.word_starts,
            rows,
            epochs,
            seed=self._seed,
            vocabulary=self._vocabulary,
            config=self._mask,
        )
        size = self._micro_batch
        return [batch.part(i, i + size) for i in range(0, len(rows), size)]

    def iter_from(self, begin: int, end: int) -> Iterator[tuple[int, list[Batch]]]:
        """Yield (step, micro-batches) for steps begin .. end - 1."""
        with ThreadPoolExecutor(1, thread_name_prefix="fitb-rows") as pool:
            ahead: deque[tuple[int, Future[list[Batch]]]] = deque()
            upcoming = iter(range(begin, end))
            try:
                for _ in range(end - begin):
                    while len(ahead) <= self._prefetch_steps:
                        step = next(upcoming, None)
                        if step is None:
                            break
                        ahead.append((step, pool.submit(self.micro_batches, step)))
                    step, future = ahead.popleft()
                    asked_s = time.monotonic()
                    micro_batches = future.result()
                    self.waited_s += time.monotonic() - asked_s
                    yield step, micro_batches
            finally:
                for _, future in ahead:
                    future.cancel()
