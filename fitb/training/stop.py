"""Coordinated graceful shutdown: ranks all-reduce a stop flag at every step.

Signals, the time budget and read errors only set a flag of this rank. The flag is all-reduced
together with the counts that each step needs anyway, so every rank stops at the same step, between
two updates.
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
from fitb.training.zero import COLLECTIVE_LIMIT

SIGNALS = signals.SHUTDOWN
_FAILURES = ("failure", "machine failure")  # only the second is worth another start
_REASONS = (*(s.name for s in SIGNALS), "time budget", *_FAILURES)


class StopFlag:
    """The stop flag of this rank, one entry per reason to stop.

    Args:
        time_budget_min: minutes from now after which to stop; None is no limit.
    """

    def __init__(self, time_budget_min: float | None = None) -> None:
        self._flags = [0] * len(_REASONS)
        self._deadline = None
        if time_budget_min is not None:
            self._deadline = time.monotonic() + 60 * time_budget_min
        self._group = None
        self._failure: FitbError | None = None
        self._failed = False  # as the ranks agreed
        self._on_every_rank = False
        self.reason = ""  # as the ranks agreed

    def install(self) -> StopFlag:
        """Install the signal handlers; forked children get the default ones back."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        os.register_at_fork(after_in_child=_restore)
        return self

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._flags[_REASONS.index(signal.Signals(number).name)] = 1
        if number == signal.SIGINT:  # a second Ctrl-C interrupts at once
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def leaving(self) -> bool:
        """Return whether a rank has a reason to stop; the same on every rank. Collective."""
        return self.agree(torch.zeros(0, dtype=torch.float64))[0] is not None

    def requested(self) -> bool:
        """Return whether this rank has a reason to stop, agreed on or not."""
        return any(self._flags)

    def guard(
        self, steps: Iterator[tuple[int, Batch | None]]
    ) -> Iterator[tuple[int, Batch | None]]:
        """Pass steps through; turn a read error of this rank into a stop of all ranks."""
        step = -1
        try:
            for step, batch in steps:
                yield step, batch
        except (FitbError, OSError) as error:
            fault = fault_of(error, "a shard") if isinstance(error, OSError) else error
            self.fail(fault, on_every_rank=False)
            yield step + 1, None

    def fail(self, error: FitbError, on_every_rank: bool = True) -> None:
        """Stop all ranks at the same step because of an error, which every rank has or one.

        Of several the first is raised, but one that no restart mends outweighs the others.
        """
        first = self._failure
        if first is None or (first.restart_helps and not error.restart_helps):
            self._failure, self._on_every_rank = error, on_every_rank
        self._flags[_REASONS.index(_FAILURES[error.restart_helps])] = 1

    def forget(self, error: FitbError) -> None:
        """Take an error back, unless the ranks have agreed to stop for one."""
        if self._failure is error and not self._failed:
            self._failure = None
            self._flags[_REASONS.index(_FAILURES[error.restart_helps])] = 0

    def raise_failure(self) -> None:
        """Raise on every rank the error that stopped the run, if one did."""
        if self._failed and dist.is_initialized() and dist.get_world_size() > 1:
            world = World(dist.get_rank(), dist.get_world_size())
            on_all(lambda: self._raise_as(f"rank {world.rank} on {socket.gethostname()}"), world)
        if self._failure is not None:
            raise self._failure

    def _raise_as(self, who: str) -> None:
        if self._failure is not None:
            said = f"{'' if self._on_every_rank else f'{who}: '}{self._failure}"
            raise type(self._failure)(said) from self._failure

    def agree(
        self, counts: torch.Tensor, save_due: bool = False
    ) -> tuple[str | None, torch.Tensor, bool]:
        """All-reduce flags and counts; every rank gets the same answer.

        Args:
            counts: (n,) float64 on the CPU, this rank's counts.
            save_due: whether this rank asks for a checkpoint.
        Returns: the reason to stop (the first one that any rank has flagged) or None; the counts
            summed over all ranks; whether a rank asked for a checkpoint.
        """
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._flags[_REASONS.index("time budget")] = 1
        flags = torch.tensor([*self._flags, save_due], dtype=torch.float64)
        both = torch.cat([flags, counts])
        if dist.is_initialized() and dist.get_world_size() > 1:
            if self._group is None and dist.get_backend() != "gloo":
                # no device synchronisation
                self._group = dist.new_group(backend="gloo", timeout=COLLECTIVE_LIMIT)
            dist.all_reduce(both, group=self._group)
        *asked, saves = both[: len(flags)].tolist()
        ordered = (*_FAILURES, *_REASONS)  # a failure takes precedence over a requested shutdown
        reason = next((r for r in ordered if asked[_REASONS.index(r)]), None)
        self._failed, self.reason = reason in _FAILURES, reason or ""
        return reason, both[len(flags) :], saves > 0


def _restore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
