"""Independent tasks through submitit: one task is a job, several are a job array."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from fitb.base.errors import FINISHED, STOP, FitbError, SystemFault


class JobStopped(FitbError):
    """A job that must not be requeued; raised so that the scheduler shows it as failed."""

    exit_code = STOP


@dataclass(frozen=True)
class CommandJob:
    """A task that runs one fitb command.

    Args:
        arguments: arguments of `fitb`, e.g. ("evaluate", "--model", "runs/tb4/export").
    """

    arguments: tuple[str, ...]

    def __call__(self) -> int:
        """Run the command.

        Raises: JobStopped if it fails, with its exit code in the message.
        """
        command = [sys.executable, "-m", "fitb", *self.arguments]
        code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
        if code:
            raise JobStopped(f"`fitb {self.arguments[0]}` ended with {code}")
        return FINISHED


def submit_tasks(
    executor: submitit.Executor, tasks: Sequence[Callable[[], int]]
) -> list[submitit.Job[int]]:
    """Submit tasks, several as one array.

    Raises: SystemFault if the scheduler refuses.
    """
    try:
        if len(tasks) == 1:
            return [executor.submit(tasks[0])]
        with executor.batch():
            return [executor.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
        raise SystemFault(f"the job was not accepted: {error}") from error
