"""One fitb command as a job, or several at once as an array, through submitit."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError

from fitb.cluster.executor import make_executor
from fitb.cluster.submit import JobStopped
from fitb.errors import FINISHED, SystemFault


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


def submit_commands(
    commands: Sequence[Sequence[str]], where: argparse.Namespace, folder: Path
) -> list[submitit.Job[int]]:
    """Submit commands, one task each; more than one become one array.

    Args:
        commands: arguments of `fitb`.
        where: from `resource_parser`.
        folder: of the logs.
    Raises: SystemFault where the cluster is not there or refuses.
    """
    executor = make_executor(where, folder)
    tasks = [CommandJob(tuple(words)) for words in commands]
    try:
        if len(tasks) == 1:
            return [executor.submit(tasks[0])]
        with executor.batch():
            return [executor.submit(task) for task in tasks]
    except (FailedJobError, subprocess.CalledProcessError, OSError) as error:
        raise SystemFault(f"the job was not accepted: {error}") from error
