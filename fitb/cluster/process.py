"""Run commands with a deadline, after which they are killed together with their children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass

_REAP_S = 0.5  # for a killed process to exit; one stuck in a dead filesystem does not
_LONGEST = 300  # characters of a command's message in an error
_SHOWN = 100  # characters of the command in an error


@dataclass(frozen=True)
class Output:
    """Output of a command, or why it failed.

    Args:
        text: standard output.
        problem: error message; empty if the command exited with 0.
        missing: whether the command does not exist.
    """

    text: str
    problem: str = ""
    missing: bool = False

    @property
    def ok(self) -> bool:
        return not self.problem


def output_of(*words: str, timeout_s: float) -> Output:
    """Run a command for at most `timeout_s` seconds, then kill it and its children.

    Args:
        words: command and arguments.
        timeout_s: deadline in seconds.
    """
    shown = " ".join(words)
    shown = f"`{shown if len(shown) <= _SHOWN else shown[:_SHOWN] + ' ...'}`"
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that a kill reaches its children
        )
    except FileNotFoundError:
        return Output("", f"{words[0]} is not on PATH", missing=True)
    except OSError as error:
        return Output("", f"{shown} cannot be run: {error.strerror}")
    try:
        text, errors = (
            part.decode(errors="replace") for part in process.communicate(timeout=timeout_s)
        )
    except subprocess.TimeoutExpired:
        _kill(process)
        return Output("", f"{shown} gave no answer in {timeout_s:g} s")
    except BaseException:
        _kill(process)
        raise
    if process.returncode:
        said = " ".join((errors.strip() or text.strip()).split())
        said = said if len(said) <= _LONGEST else f"... {said[-_LONGEST:]}"
        return Output(text, f"{shown} ended with {process.returncode}: {said}")
    return Output(text)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_REAP_S)
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()
