"""The last records of metrics.jsonl, and the speed that they tell."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RATE_WINDOW_S = 300.0
TAIL_BYTES = 1 << 20


def rate(records: Sequence[dict[str, Any]], since_step: int) -> float | None:
    """Return steps per second over the last minutes that were logged.

    Args:
        records: of metrics.jsonl, oldest first.
        since_step: records up to this step belong to an earlier attempt.
    """
    num_steps = seconds = 0.0
    before: dict[str, Any] | None = None
    for record in reversed(records):
        if before is not None:
            per_s = before.get("perf/steps_per_s")
            if per_s:
                num_steps += before["train/step"] - record["train/step"]
                seconds += (before["train/step"] - record["train/step"]) / per_s
        if record["train/step"] <= since_step or seconds > RATE_WINDOW_S:
            break
        before = record
    if not seconds and before is not None:  # one record alone
        return before.get("perf/steps_per_s") or None
    return num_steps / seconds if seconds else None


def tail_records(path: Path, num_bytes: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """Return the numbers in the last bytes of metrics.jsonl, whole lines only, oldest first."""
    try:
        with open(path, "rb") as file:
            begin = max(0, file.seek(0, 2) - num_bytes)
            file.seek(begin)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines[1 if begin else 0 : -1]:  # the last is empty, or torn by a kill
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            numbers = {k: v for k, v in json.loads(line).items() if type(v) in (int, float)}
            if type(numbers.get("train/step")) is int:
                found.append(numbers)
    return found
