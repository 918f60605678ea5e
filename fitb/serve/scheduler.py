"""Fair scheduler: one thread runs the searches of all requests, batching their forward passes.

In each turn the request with the least service time comes first, its expected cost included; others
join its forward pass while they fit. So a single client never waits for a batch to fill, short
texts share passes, and an expensive request delays others by one pass and one time slice at most. A
request past its deadline, or whose client disconnected, is dropped at the next suspension point.

The scheduler knows neither HTTP nor texts.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

import torch

from fitb.infer.passes import Found, Pass, PassLimits, Room, Steps

_JOB_S = 0.01  # time slice of a search between two passes
_TURN_S = 0.02  # time for all searches before a pass
_CREDIT_S = 0.02  # most service time that a request may lag behind the most served one
_LIGHT = 8192  # searches of at most this weight are not limited in number


class QueueFull(Exception):  # noqa: N818
    """The queue is full; try again later."""


class TooLate(Exception):  # noqa: N818
    """The deadline passed, or the client disconnected, before the work was done."""


class Stopped(Exception):  # noqa: N818
    """The scheduler is closed."""


@dataclass(eq=False)
class SearchJob(Generic[Found]):
    """A search and its state.

    Args:
        begin: prepares the search in the scheduler's thread; returns its weight (memory, in
            tokens) and its generator.
        weight: that weight, 0 before it is known.
        steps: that generator, None before it is started.
        wants: the forward pass that it waits for.
        logits: the result of that pass, (M, V) fp32, not yet sent to the generator.
    """

    begin: Callable[[], tuple[int, Steps[Found]]]
    weight: int = 0
    steps: Steps[Found] | None = None
    wants: Pass | None = None
    logits: torch.Tensor | None = None


@dataclass(eq=False)
class Request(Generic[Found]):
    """Searches of one client, which are scheduled as a unit.

    Args:
        jobs: unfinished searches.
        deadline_s: time.monotonic() at which they are dropped, in seconds.
        wanted: set to False when the client disconnects; they are dropped then too.
        expected_s: expected service time in seconds, counted in advance so that small requests
            come first.
        served_s: service time so far in seconds, starting from that of the most served request on
            arrival: new requests neither overtake for ever nor wait for earlier ones.
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
    """The thread that runs searches and calls the model.

    Args:
        forward: runs several passes as one; returns the logits of each.
        settle: called in the scheduler's thread with finished jobs and their results or exceptions.
        observe: called with the number of texts and tokens of every forward pass before it runs.
        limits: limits of a forward pass.
        most_texts: most searches per forward pass.
        most_waiting: most searches waiting to start.
        most_weight: most total weight of running heavy searches; a single one may exceed it.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[Pass]], Sequence[torch.Tensor]],
        settle: Callable[[Sequence[Outcome[Found]]], None],
        observe: Callable[[int, int], None],
        limits: PassLimits,
        *,
        most_texts: int,
        most_waiting: int,
        most_weight: int,
    ) -> None:
        self._forward, self._settle, self._observe = forward, settle, observe
        self._limits = limits
        self._most_texts, self._most_waiting = most_texts, most_waiting
        self._most_weight = most_weight
        self._new: list[Request[Found]] = []
        self._requests: list[Request[Found]] = []
        self._settled: list[Outcome[Found]] = []
        self._most_served_s = 0.0
        self._weight = 0  # of running heavy searches
        self._waiting = 0  # not started
        self._begun = 0
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._own, name="fitb-scheduler", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of jobs waiting to start."""
        return self._waiting

    def submit(self, request: Request[Found]) -> None:
        """Queue all jobs of a request or none; thread-safe.

        Raises: QueueFull, Stopped.
        """
        with self._changed:
            if not self._open:
                raise Stopped
            waiting = self._waiting + len(request.jobs)
            if max(waiting, self._begun) > self._most_waiting:
                raise QueueFull
            self._waiting = waiting
            self._new.append(request)
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Refuse new work, finish the queue, and return whether it was done in `timeout_s`."""
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
                for job in list(request.jobs) if request.is_over else ():
                    self._end(request, job, TooLate())
            self._run(self._mixed())
            self._requests = [request for request in self._requests if request.jobs]
            if self._settled:
                settled, self._settled = self._settled, []
                self._settle(settled)

    def _mixed(self) -> list[tuple[Request[Found], SearchJob[Found]]]:
        """Advance searches to their next pass, in order; return those that share the next one."""
        until_s = time.monotonic() + _TURN_S
        room = Room(self._limits)
        found: list[tuple[Request[Found], SearchJob[Found]]] = []
        for request, job in self._in_order():
            if job.wants is None and time.monotonic() < until_s and self._may_begin(job):
                spent = self._go_on(request, job)
                until_s = 0.0 if spent and found else until_s  # a pass is ready
            wants = job.wants
            if wants and room.add(wants.lengths, wants.num_positions):
                found.append((request, job))
                if len(found) == self._most_texts:
                    break
        if found:
            self._observe(len(found), room.tokens)
        return found

    def _in_order(self) -> Iterator[tuple[Request[Found], SearchJob[Found]]]:
        """Yield the first job of each request, the least served first; then the second of each."""
        ranked = sorted(self._requests, key=lambda one: one.served_s + one.expected_s)
        jobs = [[(request, job) for job in request.jobs] for request in ranked]
        for turn in itertools.zip_longest(*jobs):
            yield from filter(None, turn)

    def _may_begin(self, job: SearchJob[Found]) -> bool:
        """Whether a job is running or may start; heavy ones are limited by total weight."""
        fits = not self._weight or self._weight + job.weight <= self._most_weight
        return job.steps is not None or job.weight <= _LIGHT or fits

    def _go_on(self, request: Request[Found], job: SearchJob[Found]) -> bool:
        """Advance a search to its next pass or its end; return whether its time slice ran out."""
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
        """Prepare a job; return whether it started, or must wait for other heavy ones."""
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
        """Run one forward pass; if it fails, one per job, so that no job fails for another."""
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
        for request, job in mixed:  # finished ones leave before others start
            if time.monotonic() > until_s or self._go_on(request, job):
                break
