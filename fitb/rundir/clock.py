"""What the seconds of one rank go to, from the start of its process: each second has one kind.

The kind follows the main thread. A rank that waits for another one inside a step is training.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

TRAINING, REPEATED, SAVE = "training", "repeated", "save"
VALIDATION, EXPORT, DATA_WAIT = "validation", "export", "data_wait"
START, IDLE = "start", "idle"
KINDS = (TRAINING, REPEATED, SAVE, VALIDATION, EXPORT, DATA_WAIT, START, IDLE)


class Clock:
    """Seconds by kind; START until the first step is done.

    Args:
        age_s: age of this process in seconds.
        done: steps that earlier attempts have done: up to there, training is repeated.
    """

    def __init__(self, age_s: float, done: int = 0) -> None:
        self._kind, self._since_s = START, time.monotonic() - age_s
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._done = done
        self._lock = threading.Lock()

    def step_done(self, step: int) -> None:
        """Count from here as the step after `step`."""
        self._enter(REPEATED if step < self._done else TRAINING)

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Count as `kind` within the context; data that the first step waits for is START."""
        before = self._kind
        self._enter(START if (before, kind) == (START, DATA_WAIT) else kind)
        try:
            yield
        finally:
            self._enter(before)

    def suspended(self, seconds: float) -> None:
        """Take seconds in which the process did not run from what it is at, as IDLE."""
        with self._lock:
            self._seconds[self._kind] -= seconds
            self._seconds[IDLE] += seconds

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each kind until now."""
        with self._lock:
            spent = time.monotonic() - self._since_s
            return {**self._seconds, self._kind: self._seconds[self._kind] + spent}

    def _enter(self, kind: str) -> None:
        with self._lock:
            now_s = time.monotonic()
            self._seconds[self._kind] += now_s - self._since_s
            self._kind, self._since_s = kind, now_s
