"""Work of many clients done together by one thread: a bounded queue and batches by tokens.

It knows neither HTTP nor models. A batch is whatever waits when the thread is free: nobody waits
for others to come, so a lone client is as fast as without batches.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


class QueueFull(Exception):  # noqa: N818
    """There is no room for more; later there is."""


class TooLate(Exception):  # noqa: N818
    """The deadline passed before the work was begun."""


class Stopped(Exception):  # noqa: N818
    """The batcher takes no more work."""


@dataclass(frozen=True)
class Bounds:
    """Of a batch, and of the queue.

    Args:
        texts: jobs of a batch at most.
        tokens: their tokens; a job that has more by itself is done alone.
        queue: jobs that may wait.
    """

    texts: int
    tokens: int
    queue: int


@dataclass(eq=False)
class Job(Generic[Work]):
    """Something to do.

    Args:
        work: handed on as it is.
        tokens: what it counts in a batch.
        deadline_s: on the clock of time.monotonic; work not begun by then is not done.
        wanted: False where whoever asked has gone; it is then not done either.
    """

    work: Work
    tokens: int
    deadline_s: float
    wanted: bool = True


class Batcher(Generic[Work, Result]):
    """Owns the one thread in which `run` is called.

    Args:
        run: does the work of a batch and returns as many results, in its order. Where it raises,
            each job of the batch is done alone, so that one cannot spoil it for others.
        settle: is told the results or exceptions of some jobs; in the thread of `run`.
        observe: is told texts and tokens of every batch before it runs.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work]], Sequence[Result]],
        bounds: Bounds,
        settle: Callable[[Sequence[tuple[Job[Work], Result | Exception]]], None],
        observe: Callable[[int, int], None] = lambda texts, tokens: None,
    ) -> None:
        self._run = run
        self._bounds = bounds
        self._settle = settle
        self._observe = observe
        self._queue: deque[Job[Work]] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._own, name="fitb-batcher", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return len(self._queue)

    def submit(self, jobs: Sequence[Job[Work]]) -> None:
        """Queue jobs, all of them or none; any thread may.

        Raises: QueueFull, Stopped.
        """
        with self._changed:
            if not self._open:
                raise Stopped
            if len(self._queue) + len(jobs) > self._bounds.queue:
                raise QueueFull
            self._queue.extend(jobs)
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Take no more, do what waits, and say whether it was done in time."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _own(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._queue:
                    self._changed.wait()
                if not self._queue:
                    return
                batch, late = self._take()
            if late:
                self._settle([(job, TooLate()) for job in late])
            if batch:
                self._do(batch)

    def _take(self) -> tuple[list[Job[Work]], list[Job[Work]]]:
        """Take the next batch off the queue, and the jobs before its end that are too late."""
        batch: list[Job[Work]] = []
        late: list[Job[Work]] = []
        now_s, tokens = time.monotonic(), 0
        while self._queue and len(batch) < self._bounds.texts:
            job = self._queue[0]
            if not job.wanted or job.deadline_s <= now_s:
                late.append(self._queue.popleft())
                continue
            tokens += job.tokens
            if batch and tokens > self._bounds.tokens:
                break
            batch.append(self._queue.popleft())
        return batch, late

    def _do(self, batch: list[Job[Work]]) -> None:
        self._observe(len(batch), sum(job.tokens for job in batch))
        try:
            results = self._run([job.work for job in batch])
        except Exception as error:
            if len(batch) == 1:
                self._settle([(batch[0], error)])
                return
            for job in batch:
                if job.deadline_s > time.monotonic():
                    self._do([job])
                else:
                    self._settle([(job, TooLate())])
            return
        self._settle(list(zip(batch, results, strict=True)))
