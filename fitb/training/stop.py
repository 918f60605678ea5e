"""Leaving together: signals and the time budget set a flag, and ranks agree on it at every step.

A handler does nothing but note the signal. The note is reduced over all ranks together with the
counts that the step needs anyway, so every rank leaves at the same step, between two updates.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist

from fitb.base import signals
from fitb.base.errors import FitbError
from fitb.base.modes import fault_of
from fitb.base.world import World
from fitb.data.batch import Batch
from fitb.training.collectives import on_all

SIGNALS = signals.SHUTDOWN
_FAILURES = ("failure", "machine failure")  # the second may pass if the job is started again
_REASONS = (*(s.name for s in SIGNALS), "time budget", *_FAILURES)


class StopFlag:
    """Why this process wants to stop, if it does.

    Args:
        time_budget_min: minutes from now; None is no limit.
    """

    def __init__(self, time_budget_min: float | None = None) -> None:
        self._noted = [0] * len(_REASONS)
        self._deadline = None
        if time_budget_min is not None:
            self._deadline = time.monotonic() + 60 * time_budget_min
        self._group = None
        self._failure: FitbError | None = None
        self._failed = False  # as the ranks agreed

    def install(self) -> StopFlag:
        """Catch the signals of schedulers, in this process and not in forked children."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        os.register_at_fork(after_in_child=_restore)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted[_REASONS.index(signal.Signals(number).name)] = 1
        if number == signal.SIGINT:  # a second Ctrl-C means it
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def noted(self) -> bool:
        """Whether this process was told to leave, and the ranks have not agreed on it yet."""
        return any(self._noted)

    def guard(
        self, steps: Iterator[tuple[int, Batch | None]]
    ) -> Iterator[tuple[int, Batch | None]]:
        """Pass steps on; if reading fails on this rank, make all ranks stop at the agreement."""
        step = -1
        try:
            for step, batch in steps:
                yield step, batch
        except (FitbError, OSError) as error:
            fault = fault_of(error, "a shard") if isinstance(error, OSError) else error
            self._failure = fault
            self._noted[_REASONS.index(_FAILURES[fault.restart_helps])] = 1
            yield step + 1, None

    def raise_failure(self) -> None:
        """Raise on every rank what made the ranks stop, if a failure did: the first rank's."""
        if self._failed and dist.is_initialized() and dist.get_world_size() > 1:
            world = World(dist.get_rank(), dist.get_world_size())
            on_all(lambda: self._raise_as(f"rank {world.rank} on {socket.gethostname()}"), world)
        if self._failure is not None:
            raise self._failure

    def _raise_as(self, who: str) -> None:
        if self._failure is not None:
            raise type(self._failure)(f"{who}: {self._failure}") from self._failure

    def agree(self, counts: torch.Tensor) -> tuple[str | None, torch.Tensor]:
        """Reduce flags and counts over all ranks; every rank gets the same answer.

        Args:
            counts: (n,) float64 on the CPU, this rank's.
        Returns: why to stop (the first of the reasons that any rank noted) or None; the sum of
            counts over all ranks.
        """
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._noted[_REASONS.index("time budget")] = 1
        both = torch.cat([torch.tensor(self._noted, dtype=torch.float64), counts])
        if dist.is_initialized() and dist.get_world_size() > 1:
            if self._group is None and dist.get_backend() != "gloo":
                self._group = dist.new_group(backend="gloo")  # no device synchronisation
            dist.all_reduce(both, group=self._group)
        flags = both[: len(_REASONS)].tolist()
        ordered = (*_FAILURES, *_REASONS)  # a failure outweighs a wish to be started again
        reason = next((r for r in ordered if flags[_REASONS.index(r)]), None)
        self._failed = reason in _FAILURES
        return reason, both[len(_REASONS) :]


def _restore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
