"""The training rows of a rank by step, prefetched by one thread.

For remote shards a second thread fetches the window that is being read, and the next one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitb.base.errors import ConfigError
from fitb.base.world import World
from fitb.config import AlgorithmsConfig, MaskConfig
from fitb.data.batch import Batch
from fitb.data.masking import Vocabulary, mask_rows
from fitb.data.order import rows_at, windows_between
from fitb.shards.cache import GB, ShardCache
from fitb.shards.shard_set import ShardSet

WINDOWS_AHEAD = 2  # windows that must fit into the cache: the current and the next
_LATE_S = 0.2  # interval of asking `given_up` while rows are late
_LEAVE_S = 1.0  # for a cancelled fetch to end


def positions_of_rank(step: int, global_batch: int, world: World) -> NDArray[np.int64]:
    """Positions of the run that a rank reads in a step: a contiguous share of the batch, int64.

    Args:
        step: step number, from 0.
        global_batch: rows per step over all ranks, whose shares differ by at most one row.
        world: rank and world size.
    """
    begin, end = (global_batch * rank // world.size for rank in (world.rank, world.rank + 1))
    return step * global_batch + np.arange(begin, end, dtype=np.int64)


def bytes_ahead(shard_bytes: Sequence[int], window_shards: int) -> int:
    """Return an upper bound of the bytes of WINDOWS_AHEAD consecutive windows."""
    return sum(sorted(shard_bytes)[-WINDOWS_AHEAD * window_shards :])


def _check_cache(cache: ShardCache, shard_bytes: Sequence[int], window_shards: int) -> None:
    """Raise ConfigError if WINDOWS_AHEAD windows do not fit into the cache."""
    needed = bytes_ahead(shard_bytes, window_shards)
    if needed <= cache.max_bytes:
        return
    fewer = range(window_shards - 1, 0, -1)
    fitting = next((w for w in fewer if bytes_ahead(shard_bytes, w) <= cache.max_bytes), None)
    other = f"lower data.window_shards to {fitting}" if fitting else "prepare smaller shards"
    raise ConfigError(
        f"data.cache_gb={cache.max_bytes / GB:g} does not hold {WINDOWS_AHEAD} windows of"
        f" data.window_shards={window_shards}, {needed / GB:.4g} GB; raise data.cache_gb above"
        f" that, or {other}"
    )


class FetchAhead:
    """Background thread that fetches the window that is being read, and the next.

    Args:
        shards: a remote shard set.
        windows: windows to fetch, from `windows_between`.
    """

    def __init__(self, shards: ShardSet, windows: Iterator[tuple[int, NDArray[np.int64]]]) -> None:
        assert shards.cache is not None
        self._shards, self._windows = shards, windows
        self._cancelled = shards.cache.remote.cancelled
        self._changed = threading.Condition()
        self._reading = self._wanted = self._fetched = 0  # positions
        self._closed = False
        self._error: BaseException | None = None
        # A daemon, so that an unresponsive server does not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="fitb-fetch", daemon=True)
        self._thread.start()

    def wait_for(self, begin: int, end: int) -> None:
        """Wait until the shards of positions begin .. end - 1 are fetched.

        Positions before `begin` count as read: their windows may be removed from the cache.

        Raises: exceptions of ShardSet.fetch on the thread.
        """
        with self._changed:
            self._reading, self._wanted = max(self._reading, begin), max(self._wanted, end)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._error or self._fetched >= end)
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """End every wait, also for a fetch of the same shards on another thread."""
        self._cancelled.set()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait up to a second for the thread to end, then allow fetches again."""
        self._thread.join(_LEAVE_S)
        self._cancelled.clear()

    def _run(self) -> None:
        ends: deque[int] = deque([0] * WINDOWS_AHEAD, maxlen=WINDOWS_AHEAD)
        try:
            for end, numbers in self._windows:
                if not self._may_fetch(read_until=ends[0], begin=ends[-1]):
                    return
                self._shards.fetch(numbers.tolist())
                ends.append(end)
                with self._changed:
                    self._fetched = end
                    self._changed.notify_all()
        except Exception as error:  # raised again by wait_for
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _may_fetch(self, read_until: int, begin: int) -> bool:
        """Wait until the window before the last is read, or this one is wanted; False if closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._reading >= read_until or self._wanted > begin
            )
            return not self._closed


class RowStream:
    """The training rows of one rank.

    Args:
        shards: the train split.
        vocabulary: vocabulary of the tokenizer.
        mask: masking settings.
        world: rank and world size.
        global_batch: rows per step over all ranks.
        window_shards: number of shards whose rows are shuffled together.
        prefetch_steps: number of steps to read ahead.
        seed: seed of order and masks.
        pin: whether to return batches in pinned memory.
        mask_version: version of the masks, `algorithms.masks`.
    Raises: ConfigError if WINDOWS_AHEAD windows of remote shards do not fit into the cache.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        vocabulary: Vocabulary,
        mask: MaskConfig,
        world: World,
        global_batch: int,
        window_shards: int,
        prefetch_steps: int,
        seed: int,
        pin: bool = False,
        mask_version: int = AlgorithmsConfig.masks,
        waiting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        if shards.cache is not None:
            _check_cache(shards.cache, shards.shard_bytes, window_shards)
        self._shards, self._vocabulary, self._mask, self._world = shards, vocabulary, mask, world
        self._order: dict[str, Any] = {
            "shard_rows": np.asarray(shards.shard_rows, np.int64),
            "seed": seed,
            "window_shards": window_shards,
        }
        self._global_batch, self._pin, self._seed = global_batch, pin, seed
        self._prefetch_steps, self._mask_version = prefetch_steps, mask_version
        self._waiting = waiting
        self.waited_s = 0.0  # seconds that iter_from waited for rows

    def batch(self, step: int) -> Batch:
        """Return this rank's batch of a step (from 0); steps may be asked in any order."""
        positions = positions_of_rank(step, self._global_batch, self._world)
        epochs, rows = rows_at(positions, **self._order)
        read = self._shards.read(rows)
        masked = mask_rows(
            read.input_ids,
            read.word_starts,
            rows,
            epochs,
            seed=self._seed,
            vocabulary=self._vocabulary,
            config=self._mask,
            version=self._mask_version,
        )
        batch = Batch.of(masked, rows)
        return batch.pinned() if self._pin else batch

    def iter_from(
        self, begin: int, end: int, given_up: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Batch | None]]:
        """Yield (step, batch) for steps begin .. end - 1.

        Args:
            begin: first step.
            end: step after the last one.
            given_up: polled while rows are late; if true, the batch is None and the iterator ends.
        """
        with self._fetching(begin, end) as (read, pool):
            ahead: deque[tuple[int, Future[Batch]]] = deque()
            upcoming = iter(range(begin, end))
            try:
                for _ in range(end - begin):
                    while len(ahead) <= self._prefetch_steps:
                        step = next(upcoming, None)
                        if step is None:
                            break
                        ahead.append((step, pool.submit(read, step)))
                    step, future = ahead.popleft()
                    if not self._await(future, given_up):
                        yield step, None
                        return
                    yield step, future.result()
            finally:
                for _, future in ahead:
                    future.cancel()

    def _await(self, future: Future[Batch], given_up: Callable[[], bool]) -> bool:
        """Wait for rows; return whether they have come."""
        asked_s = time.monotonic()
        with self._waiting():
            while not wait([future], _LATE_S).done:
                if given_up():
                    return False
        self.waited_s += time.monotonic() - asked_s
        return True

    @contextlib.contextmanager
    def _fetching(
        self, begin: int, end: int
    ) -> Iterator[tuple[Callable[[int], Batch], ThreadPoolExecutor]]:
        """Yield a function that reads a step, fetching remote shards first, and its thread."""
        with contextlib.ExitStack() as stack:  # unwinds in reverse order: close, pool, join
            fetch = None
            if self._shards.cache is not None:
                first, last = begin * self._global_batch, end * self._global_batch
                fetch = FetchAhead(self._shards, windows_between(first, last, **self._order))
                stack.callback(fetch.join)
            pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="fitb-rows"))
            if fetch is not None:
                stack.callback(fetch.close)

            def read(step: int) -> Batch:
                if fetch is not None:
                    positions = positions_of_rank(step, self._global_batch, self._world)
                    fetch.wait_for(int(positions[0]), int(positions[-1]) + 1)
                return self.batch(step)

            yield read, pool
