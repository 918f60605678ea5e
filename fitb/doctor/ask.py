"""Questions to a machine that may be sick: every one has a deadline, and none raises."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
COMMAND_S = 3.0  # of a command, unless its caller knows better
_REAP_S = 0.5  # for a killed process to go; one in a dead filesystem does not
_SAID = 300  # characters of what a command said that are passed on


@dataclass(frozen=True)
class Answer:
    """What a command printed, or why it did not.

    Args:
        output: of standard output.
        problem: in words; empty where the command ended with 0.
        missing: whether there is no such command.
    """

    output: str
    problem: str = ""
    missing: bool = False

    @property
    def ok(self) -> bool:
        return not self.problem


def ask(*words: str, timeout_s: float = COMMAND_S, env: Mapping[str, str] | None = None) -> Answer:
    """Run a command for at most `timeout_s` seconds; it and its children are killed then."""
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
        return Answer("", f"{words[0]} is not on PATH", missing=True)
    except OSError as error:
        return Answer("", f"{words[0]} cannot be run: {error.strerror}")
    try:
        output, errors = (
            part.decode(errors="replace") for part in process.communicate(timeout=timeout_s)
        )
    except subprocess.TimeoutExpired:
        _kill(process)
        return Answer("", f"`{' '.join(words[:4])}` gave no answer in {timeout_s:g} s")
    except BaseException:
        _kill(process)
        raise
    if process.returncode:
        said = " ".join((errors.strip() or output.strip()).split())
        said = said if len(said) <= _SAID else f"... {said[-_SAID:]}"
        return Answer(output, f"`{' '.join(words[:4])}` ended with {process.returncode}: {said}")
    return Answer(output)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_REAP_S)
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def together(calls: Mapping[str, Callable[[], T]], deadline_s: float) -> dict[str, T | Exception]:
    """Make calls at the same time, each on a thread that the interpreter does not wait for.

    Returns: for each what it returned or raised; TimeoutError where it was late.
    """
    found: dict[str, T | Exception] = {}

    def work(name: str, call: Callable[[], T]) -> None:
        try:
            found[name] = call()
        except Exception as error:
            found[name] = error

    threads = [
        threading.Thread(target=work, args=pair, daemon=True, name=f"doctor-{pair[0]}")
        for pair in calls.items()
    ]
    deadline = time.monotonic() + deadline_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    done = dict(found)
    return {name: done.get(name, TimeoutError(f"not done in {deadline_s:g} s")) for name in calls}


def within(deadline_s: float, call: Callable[[], T]) -> T | Exception:
    """Make one call that has no deadline of its own, such as a look-up of a host."""
    return together({"call": call}, deadline_s)["call"]


def reason(error: object) -> str:
    """Return an error in one line: its kind, and the first line of its message."""
    first: Any = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
