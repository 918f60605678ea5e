"""From a step number to this rank's share of the batch, read ahead of need by one thread.

Where the shards are remote, a second thread fetches the window that is read and then the next.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

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

WINDOWS_AHEAD = 2  # the one that is read and the next: so many must fit into the cache
_LATE_S = 0.2  # rows that take longer: look whether they are still wanted
_LEAVE_S = 1.0  # for a fetch to notice that nobody wants it any more


def positions_of_rank(step: int, global_batch: int, world: World) -> NDArray[np.int64]:
    """Positions of the run that this rank reads in a step: a contiguous share of the batch.

    Args:
        step: 0-based.
        global_batch: of all ranks; their shares differ by one row where they must.
    """
    begin, end = (global_batch * rank // world.size for rank in (world.rank, world.rank + 1))
    return step * global_batch + np.arange(begin, end, dtype=np.int64)


def bytes_ahead(shard_bytes: Sequence[int], window_shards: int) -> int:
    """Return what the largest WINDOWS_AHEAD windows of any order take together."""
    return sum(sorted(shard_bytes)[-WINDOWS_AHEAD * window_shards :])


def check_cache(cache: ShardCache, shard_bytes: Sequence[int], window_shards: int) -> None:
    """Raise ConfigError where the cache does not hold the windows that are needed together."""
    needed = bytes_ahead(shard_bytes, window_shards)
    if needed <= cache.max_bytes:
        return
    fitting = next(
        (w for w in range(window_shards, 0, -1) if bytes_ahead(shard_bytes, w) <= cache.max_bytes),
        None,
    )
    other = f"lower data.window_shards to {fitting}" if fitting else "prepare smaller shards"
    raise ConfigError(
        f"data.cache_gb={cache.max_bytes / GB:g} does not hold {WINDOWS_AHEAD} windows of"
        f" data.window_shards={window_shards}, {needed / GB:.4g} GB; raise data.cache_gb above"
        f" that, or {other}"
    )


class FetchAhead:
    """Fetches windows in turn on a thread of its own: the one that is read, and the next.

    Args:
        shards: remote.
        windows: as `windows_between` yields them.
    """

    def __init__(self, shards: ShardSet, windows: Iterator[tuple[int, NDArray[np.int64]]]) -> None:
        self._shards, self._windows = shards, windows
        self._changed = threading.Condition()
        self._reading = self._wanted = self._fetched = 0  # positions
        self._closed = False
        self._error: BaseException | None = None
        # A daemon, so that a server that does not answer cannot hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="fitb-fetch", daemon=True)
        self._thread.start()

    def wait_for(self, begin: int, end: int) -> None:
        """Wait until the shards of the positions begin .. end - 1 are here.

        Positions before `begin` count as read: their windows may leave the cache.

        Raises: what ShardSet.fetch raised on the thread.
        """
        with self._changed:
            self._reading, self._wanted = max(self._reading, begin), max(self._wanted, end)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._error or self._fetched >= end)
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """End every wait, that for a fetch of the same shards on another thread included."""
        cache = self._shards.cache
        if cache is not None:
            cache.remote.cancelled.set()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait a moment for the thread, then allow fetches again."""
        self._thread.join(_LEAVE_S)
        cache = self._shards.cache
        if cache is not None:
            cache.remote.cancelled.clear()

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
        except Exception as error:  # raised where rows are waited for
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _may_fetch(self, read_until: int, begin: int) -> bool:
        """Wait until the window before the last is read, or this one wanted; False when closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._reading >= read_until or self._wanted > begin
            )
            return not self._closed


class RowStream:
    """The training rows of one rank.

    Args:
        shards: the training split.
        global_batch: rows per step over all ranks.
        prefetch_steps: steps read ahead.
        pin: hand over batches in memory that a GPU reads by itself.
        mask_version: of the masks, `algorithms.masks`.
    Raises: ConfigError where the cache of remote shards does not hold WINDOWS_AHEAD windows.
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
    ) -> None:
        if shards.cache is not None:
            check_cache(shards.cache, shards.shard_bytes, window_shards)
        self._shards, self._vocabulary, self._mask, self._world = shards, vocabulary, mask, world
        self._shard_rows = np.asarray(shards.shard_rows, np.int64)
        self._global_batch, self._pin = global_batch, pin
        self._window_shards, self._seed = window_shards, seed
        self._prefetch_steps, self._mask_version = prefetch_steps, mask_version
        self.waited_s = 0.0  # in iter_from, for rows that were not there yet

    def batch(self, step: int) -> Batch:
        """Return what this rank consumes in a step (0-based); any step, in any order."""
        positions = positions_of_rank(step, self._global_batch, self._world)
        epochs, rows = rows_at(
            positions,
            shard_rows=self._shard_rows,
            seed=self._seed,
            window_shards=self._window_shards,
        )
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
            given_up: asked while rows are late; then there is no batch, and nothing after it.
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
                    asked_s = time.monotonic()
                    while not wait([future], _LATE_S).done:
                        if given_up():
                            yield step, None
                            return
                    self.waited_s += time.monotonic() - asked_s
                    yield step, future.result()
            finally:
                for _, future in ahead:
                    future.cancel()

    @contextlib.contextmanager
    def _fetching(
        self, begin: int, end: int
    ) -> Iterator[tuple[Callable[[int], Batch], ThreadPoolExecutor]]:
        """Yield what reads a step, and the thread to do it on; remote shards are fetched first."""
        with contextlib.ExitStack() as stack:  # left from the end: close, pool, join
            fetch = None
            if self._shards.cache is not None:
                windows = windows_between(
                    begin * self._global_batch,
                    end * self._global_batch,
                    shard_rows=self._shard_rows,
                    seed=self._seed,
                    window_shards=self._window_shards,
                )
                fetch = FetchAhead(self._shards, windows)
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
