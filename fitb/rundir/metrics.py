"""Reading metrics.jsonl: the last records, steps per second, and the best validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fitb.base.fsio import read_records
from fitb.rundir.names import BEST_BY, METRICS, STEP

RATE_WINDOW_S = 300.0
TAIL_BYTES = 1 << 20


def tail_records(run: Path, num_bytes: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """Return the records in the last bytes of metrics.jsonl, complete lines only, oldest first.

    Args:
        run: run folder.
        num_bytes: size of the tail.
    Returns: records with their numeric values only.
    """
    found = []
    for record in read_records(
        run / METRICS, STEP, tell=lambda damaged: None, tail_bytes=num_bytes
    ):
        numbers = {key: value for key, value in record.items() if type(value) in (int, float)}
        if type(numbers.get(STEP)) is int:
            found.append(numbers)
    return found


def best_validation(records: Iterable[dict[str, Any]]) -> tuple[float, int] | None:
    """Return the lowest validation loss of the records and its step; None if there is none."""
    losses = [(record[BEST_BY], record[STEP]) for record in records if BEST_BY in record]
    return min(losses, key=lambda pair: pair[0], default=None)


def rate(records: Sequence[dict[str, Any]], since_step: int) -> float | None:
    """Return steps per second over the last RATE_WINDOW_S seconds; None if unknown.

    Args:
        records: records of metrics.jsonl, oldest first.
        since_step: ignore records up to this step, which an earlier attempt logged.
    """
    num_steps = seconds = 0.0
    before: dict[str, Any] | None = None
    for record in reversed(records):
        if before is not None:
            per_s = before.get("perf/steps_per_s")
            if per_s:
                num_steps += before[STEP] - record[STEP]
                seconds += (before[STEP] - record[STEP]) / per_s
        if record[STEP] <= since_step or seconds > RATE_WINDOW_S:
            break
        before = record
    if not seconds and before is not None:  # a single record
        return before.get("perf/steps_per_s") or None
    return num_steps / seconds if seconds else None
