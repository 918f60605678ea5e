"""The exceptions of fitb, each with the exit code that the command line gives it.

    FitbError                1
    +-- ConfigError          2   a flag, a key or a number of the configuration
    +-- DataError            3   shards, manifest, text
    |   +-- ContractError    3   teacher, student, tokenizer and shards do not match
    +-- SystemFault          4   the machine: no space, no device, no Slurm
    +-- TrainingError        5   the numbers: minimum loss scale, a loss that is not finite
    |   +-- CheckpointError  5   checkpoints exist and none is valid

Training jobs use the exit codes FINISHED, RESUME and STOP, which batch scripts read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

FINISHED = 0  # all steps are done
CRASH = 1  # like any code that is not listed here: restarting may help
RESUME = 85  # a checkpoint was saved; run the same command again
STOP = 93  # restarting would not help


class FitbError(Exception):
    """An error with the value, what was expected and the remedy, in one line."""

    exit_code = 1
    restart_helps = False


class ConfigError(FitbError):
    exit_code = 2


class DataError(FitbError):
    exit_code = 3


class ContractError(DataError):
    """All violations of the model contract at once.

    Args:
        failures: one sentence with its remedy per violation.
    """

    def __init__(self, failures: Iterable[str]) -> None:
        self.failures = list(failures)
        super().__init__("; ".join(self.failures))


class SystemFault(FitbError):
    exit_code = 4
    restart_helps = True


class UnfitMachine(SystemFault):
    """A fault of the machine or of how the job was placed on it, which would come again."""

    restart_helps = False


class TrainingError(FitbError):
    exit_code = 5


class CheckpointError(TrainingError):
    pass


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (nearest: X)" with the most similar known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {close[0]})" if close else ""
