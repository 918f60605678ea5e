"""Tasks that need no word of each other, through submitit: one is a job, several are an array."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from fitb.base.errors import FINISHED, STOP, FitbError, SystemFault


class JobStopped(FitbError):
    """A job that is not requeued; raised so that the scheduler shows it as failed."""

    exit_code = STOP


@dataclass(frozen=True)
class CommandJob:
    """One fitb command in one task.

    Args:
        arguments: of `fitb`, e.g. ("evaluate", "--model", "runs/tb4/export").
    """

    arguments: tuple[str, ...]

    def __call__(self) -> int:
        """Run it.

        Raises: JobStopped with its exit code.
        """
        command = [sys.executable, "-m", "fitb", *self.arguments]
        code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
        if code:
            raise JobStopped(f"`fitb {self.arguments[0]}` ended with {code}")
        return FINISHED


def submit_tasks(
    executor: submitit.Executor, tasks: Sequence[Callable[[], int]]
) -> list[submitit.Job[int]]:
    """Submit tasks; more than one become one array.

    Raises: SystemFault where the scheduler refuses.
    """
    try:
        if len(tasks) == 1:
            return [executor.submit(tasks[0])]
        with executor.batch():
            return [executor.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError, OSError) as error:
        raise SystemFault(f"the job was not accepted: {error}") from error
