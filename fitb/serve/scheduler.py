"""Searches of many clients carried out by one thread, a forward pass at a time, fairly by request.

In each turn the request that has had least of the thread comes first, where what it is expected to
take counts too; others join its pass while there is room. So a lone client waits for nobody, short
texts that wait share a pass, and what asks for much only delays others by the pass and the slice of
time that it is in. A request that is late, or whose client has gone, is dropped at the next point
where its search stops.

It knows neither HTTP nor texts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import torch

from fitb.infer.passes import Found, Pass, PassLimits, Room, Steps

_JOB_S = 0.01  # a search may take between two passes before others go on
_TURN_S = 0.02  # all searches may take before a pass
_CREDIT_S = 0.02  # that a request may be behind the most served one
_LIGHT = 8192  # weight of searches of which any number may be under way


class QueueFull(Exception):  # noqa: N818
    """There is no room for more; later there is."""


class TooLate(Exception):  # noqa: N818
    """The deadline passed, or the client went, before the work was done."""


class Stopped(Exception):  # noqa: N818
    """The scheduler takes no more work."""


@dataclass(frozen=True)
class Bounds:
    """What is done at a time.

    Args:
        texts: searches that share a forward pass.
        limits: of a forward pass.
        queue: searches that may wait to be begun.
        weight: of the searches under way that are not light; one by itself may have more.
    """

    texts: int
    limits: PassLimits
    queue: int
    weight: int


@dataclass(eq=False)
class SearchJob(Generic[Found]):
    """A search.

    Args:
        begin: prepares it; returns its weight in memory and its steps. In the scheduler's thread.
    """

    begin: Callable[[], tuple[int, Steps[Found]]]
    weight: int = 0
    steps: Steps[Found] | None = None
    wants: Pass | None = None
    logits: torch.Tensor | None = None


@dataclass(eq=False)
class Request(Generic[Found]):
    """Searches of one client, which count together.

    Args:
        jobs: that are not done.
        deadline_s: on the clock of time.monotonic; they are dropped then.
        wanted: False where whoever asked has gone; they are dropped then too.
        expected_s: time of the thread that it counts beforehand, so that small ones go first.
        served_s: time of the thread that it has had, counted from what the most served request had
            when it came: newcomers neither overtake for ever nor wait for what was before them.
    """

    jobs: list[SearchJob[Found]]
    deadline_s: float
    wanted: bool = True
    expected_s: float = 0.0
    served_s: float = 0.0

    @property
    def is_over(self) -> bool:
        return not self.wanted or time.monotonic() >= self.deadline_s


Outcome = tuple[SearchJob[Found], Found | Exception]


class Scheduler(Generic[Found]):
    """Owns the one thread in which searches go on and the model is called.

    Args:
        forward: returns the logits of each of some passes, from one forward pass.
        settle: is told the results or exceptions of some jobs; in the scheduler's thread.
        observe: is told texts and tokens of every forward pass before it runs.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[Pass]], Sequence[torch.Tensor]],
        bounds: Bounds,
        settle: Callable[[Sequence[Outcome[Found]]], None],
        observe: Callable[[int, int], None] = lambda texts, tokens: None,
    ) -> None:
        self._forward = forward
        self._bounds = bounds
        self._settle = settle
        self._observe = observe
        self._new: list[Request[Found]] = []
        self._requests: list[Request[Found]] = []
        self._settled: list[Outcome[Found]] = []
        self._most_served_s = 0.0
        self._weight = 0  # of what is under way and not light
        self._waiting = 0  # not begun
        self._begun = 0
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._own, name="fitb-scheduler", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return how many jobs wait to be begun."""
        return self._waiting

    def submit(self, request: Request[Found]) -> None:
        """Queue the jobs of a request, all of them or none; any thread may.

        Raises: QueueFull, Stopped.
        """
        with self._changed:
            if not self._open:
                raise Stopped
            waiting = self._waiting + len(request.jobs)
            if waiting > self._bounds.queue or self._begun > self._bounds.queue:
                raise QueueFull
            self._waiting = waiting
            self._new.append(request)
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
                while self._open and not self._new and not self._requests:
                    self._changed.wait()
                new, self._new = self._new, []
            if not new and not self._requests:
                return
            for request in new:
                request.served_s = self._most_served_s
            self._requests += new
            for request in self._requests:
                request.served_s = max(request.served_s, self._most_served_s - _CREDIT_S)
            self._drop()
            self._run(self._mixed())
            self._requests = [request for request in self._requests if request.jobs]
            if self._settled:
                settled, self._settled = self._settled, []
                self._settle(settled)

    def _drop(self) -> None:
        """Give up what nobody waits for any more."""
        for request in self._requests:
            if request.is_over:
                for job in list(request.jobs):
                    self._end(request, job, TooLate())

    def _mixed(self) -> list[tuple[Request[Found], SearchJob[Found]]]:
        """Carry searches on to their next pass, in order, and return those that share one."""
        until_s = time.monotonic() + _TURN_S
        room = Room(self._bounds.limits)
        found: list[tuple[Request[Found], SearchJob[Found]]] = []
        for request, job in self._in_order():
            if job.wants is None and time.monotonic() < until_s and self._may_begin(job):
                spent = self._go_on(request, job)
                until_s = 0.0 if spent and found else until_s  # a pass waits
            wants = job.wants
            if wants and room.add(wants.lengths, wants.num_positions):
                found.append((request, job))
                if len(found) == self._bounds.texts:
                    break
        if found:
            self._observe(len(found), room.tokens)
        return found

    def _in_order(self) -> Iterator[tuple[Request[Found], SearchJob[Found]]]:
        """Yield the first job of each request, the least served first; then the second of each."""
        ranked = [
            (request, list(request.jobs))
            for request in sorted(self._requests, key=lambda one: one.served_s + one.expected_s)
        ]
        for turn in range(max((len(jobs) for _, jobs in ranked), default=0)):
            yield from ((request, jobs[turn]) for request, jobs in ranked if turn < len(jobs))

    def _may_begin(self, job: SearchJob[Found]) -> bool:
        """Whether a job is under way or may be: few heavy ones are at a time."""
        fits = not self._weight or self._weight + job.weight <= self._bounds.weight
        return job.steps is not None or job.weight <= _LIGHT or fits

    def _go_on(self, request: Request[Found], job: SearchJob[Found]) -> bool:
        """Carry a search on to its next pass or its end; say whether its slice ended before."""
        began_s = time.monotonic()
        try:
            if job.steps is None and not self._begin(job):
                return False
            assert job.steps is not None
            while job.wants is None and time.monotonic() < began_s + _JOB_S:
                if request.is_over:
                    raise TooLate
                logits, job.logits = job.logits, None
                job.wants = job.steps.send(logits)
            return job.wants is None
        except StopIteration as end:
            self._end(request, job, end.value)
            return False
        except Exception as error:
            self._end(request, job, error)
            return False
        finally:
            self._count(request, time.monotonic() - began_s)

    def _count(self, request: Request[Found], taken_s: float) -> None:
        request.served_s += taken_s
        self._most_served_s = max(self._most_served_s, request.served_s)

    def _begin(self, job: SearchJob[Found]) -> bool:
        """Prepare a job; say whether it is under way, or has to wait for other heavy ones."""
        job.weight, steps = job.begin()
        if not self._may_begin(job):
            return False
        job.steps = steps
        with self._changed:
            self._waiting -= 1
            self._begun += 1
        if job.weight > _LIGHT:
            self._weight += job.weight
        return True

    def _end(
        self, request: Request[Found], job: SearchJob[Found], outcome: Found | Exception
    ) -> None:
        request.jobs.remove(job)
        with self._changed:
            if job.steps is None:
                self._waiting -= 1
            else:
                self._begun -= 1
        if job.steps is not None:
            job.steps.close()
            if job.weight > _LIGHT:
                self._weight -= job.weight
        self._settled.append((job, outcome))

    def _run(self, mixed: Sequence[tuple[Request[Found], SearchJob[Found]]]) -> None:
        """Run one forward pass; where it fails, each job's alone, so that none spoils others."""
        if not mixed:
            return
        began_s = time.monotonic()
        passes = [job.wants for _, job in mixed if job.wants]
        try:
            answers = self._forward(passes)
        except Exception as error:
            if len(mixed) == 1:
                self._end(*mixed[0], error)
                return
            for one in mixed:
                self._run([one])
            return
        taken_s = time.monotonic() - began_s
        tokens = [sum(wanted.lengths) for wanted in passes]
        for (request, job), mine, logits in zip(mixed, tokens, answers, strict=True):
            self._count(request, taken_s * mine / sum(tokens))
            job.wants, job.logits = None, logits
        until_s = time.monotonic() + _TURN_S
        for request, job in mixed:  # those at their end leave before others are begun
            if time.monotonic() > until_s or self._go_on(request, job):
                break
