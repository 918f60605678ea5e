"""The exceptions of fitb, each with the exit code that the command line gives it.

    FitbError                1
    +-- ConfigError          2   a flag, a key or a number of the configuration
    +-- DataError            3   shards, manifest, text
    |   +-- ContractError    3   teacher, student, tokenizer and shards do not fit together
    +-- SystemFault          4   the machine: no space, no device, no Slurm
    +-- TrainingError        5   the numbers: minimum loss scale, a loss that is not finite
    |   +-- CheckpointError  5   checkpoints exist and none can be trusted

A training job has its own codes, because its scheduler reads them: FINISHED, RESUME, STOP.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FINISHED = 0  # all steps are done
CRASH = 1  # and everything else that is not here: starting again may help
RESUME = 85  # saved; start the same command again
STOP = 93  # starting again would not help


class FitbError(Exception):
    """An error that a user can act on: what, the value, what was expected, what to do."""

    exit_code = 1
    restart_helps = False


class ConfigError(FitbError):
    exit_code = 2


class DataError(FitbError):
    exit_code = 3


class ContractError(DataError):
    """All broken clauses of the model contract at once.

    Args:
        failures: one sentence each, with its remedy.
    """

    def __init__(self, failures: Iterable[str]) -> None:
        self.failures = list(failures)
        super().__init__("; ".join(self.failures))


class SystemFault(FitbError):
    exit_code = 4
    restart_helps = True


class TrainingError(FitbError):
    exit_code = 5


class CheckpointError(TrainingError):
    pass


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ' (nearest: X)' for the known name most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {close[0]})" if close else ""
