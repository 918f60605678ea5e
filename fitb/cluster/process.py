"""Commands of a machine that may be sick: each has a deadline and is killed with its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

_REAP_S = 0.5  # for a killed process to go; one in a dead filesystem does not
_LONGEST = 300  # characters of what a command said that are passed on
_SHOWN = 100  # characters of the command itself


@dataclass(frozen=True)
class Output:
    """What a command printed, or why it did not.

    Args:
        text: of standard output.
        problem: in words; empty where the command ended with 0.
        missing: whether there is no such command.
    """

    text: str
    problem: str = ""
    missing: bool = False

    @property
    def ok(self) -> bool:
        return not self.problem


def output_of(*words: str, timeout_s: float, env: Mapping[str, str] | None = None) -> Output:
    """Run a command for at most `timeout_s` seconds; it and its children are killed then."""
    shown = " ".join(words)
    shown = f"`{shown if len(shown) <= _SHOWN else shown[:_SHOWN] + ' ...'}`"
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,  # so that a kill reaches what a script has started
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
