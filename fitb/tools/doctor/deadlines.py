"""Calls with a deadline, so that nothing on a broken machine can hang the doctor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from fitb.cluster.process import Output, output_of

T = TypeVar("T")


def together(calls: Mapping[str, Callable[[], T]], deadline_s: float) -> dict[str, T | Exception]:
    """Run calls concurrently, each on a daemon thread.

    Returns: name -> the value returned or the exception raised; TimeoutError after the deadline.
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


def outputs_of(commands: Mapping[str, Sequence[str]], timeout_s: float) -> dict[str, Output]:
    """Run commands concurrently, each for at most `timeout_s` seconds."""
    calls = {
        name: partial(output_of, *words, timeout_s=timeout_s) for name, words in commands.items()
    }
    found = together(calls, timeout_s + 1)
    return {n: o if isinstance(o, Output) else Output("", str(o)) for n, o in found.items()}


def within(deadline_s: float, call: Callable[[], T]) -> T | Exception:
    """Run one call that has no timeout of its own, such as a DNS lookup."""
    return together({"call": call}, deadline_s)["call"]


def reason(error: object) -> str:
    """Render an error on one line: its type and the first line of its message."""
    first: Any = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
