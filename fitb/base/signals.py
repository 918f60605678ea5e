"""Signals that end a job, by sender."""

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

TIME_LIMIT = signal.SIGUSR1  # sbatch --signal=B:USR1@300, to the batch script, which passes it on
TIME_LIMIT_OF_SUBMITIT = signal.SIGUSR2  # its own --signal, to the tasks
PREEMPTION = signal.SIGTERM  # Slurm, to the tasks; also scancel and kill
BY_SCHEDULER = (PREEMPTION, TIME_LIMIT, TIME_LIMIT_OF_SUBMITIT)
SHUTDOWN = (*BY_SCHEDULER, signal.SIGINT)  # and a terminal: each leads to a graceful shutdown


def slurm_name(number: signal.Signals) -> str:
    """Return the name of a signal as in Slurm's options, such as USR1."""
    return number.name.removeprefix("SIG")


@contextlib.contextmanager
def handled(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], Any]
) -> Iterator[None]:
    """Handle signals within the context; then their earlier handlers come back."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Deliver signals to this thread after the context only, and to processes started here never.

    Other threads still receive them, and Python then runs the handler in the main thread.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
