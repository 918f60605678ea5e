"""events.jsonl, the event log of a run: one JSON object per line.

The trainer and the restart decision append to it, as did earlier versions of both: readers drop
fields of an unexpected type and ignore unknown events.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fitb.base.fsio import read_records
from fitb.rundir import names

logger = logging.getLogger(__name__)
Event = dict[str, Any]
_LARGEST = 2**53  # largest range of integers that float64 represents exactly
_WHOLE = ("attempt", "step", "exit_code", "world_size", "restart", "start", "stalled", "rank")
_TEXTS = ("time", "event", "reason", "job", "chain", "host", "checkpoint")
_LONGEST_REASON = 1000  # characters


def read_events(run: Path, tell: Callable[[str], None] = logger.warning) -> Iterator[Event]:
    """Yield the readable events of a run, oldest first.

    Hang reports that no later attempt has appended to the file yet come last.

    Args:
        run: run folder.
        tell: called with a message on damaged lines, which are skipped.
    """
    for event in read_records(run / names.EVENTS, "event", tell=tell):
        found = as_written(event)
        if "event" in found:
            yield found
    for _, event in hang_reports(run):
        yield event


def num_attempts(run: Path) -> int:
    """Return how many attempts of a run have begun."""
    return sum(event["event"] == "attempt" for event in read_events(run))


def as_written(event: Event) -> Event:
    """Return an event without the fields whose type is not the one that fitb writes."""

    def fits(key: str, value: Any) -> bool:
        if key in _WHOLE:
            return type(value) is int and abs(value) <= _LARGEST
        if key in _TEXTS:
            return isinstance(value, str)
        if key in ("hosts", "checks"):
            return isinstance(value, list) and all(isinstance(each, str) for each in value)
        parts = value.values() if key == "seconds" and isinstance(value, dict) else [value]
        return all(type(x) in (int, float) and abs(x) <= _LARGEST for x in parts)

    return {key: value for key, value in event.items() if fits(key, value)}


def now() -> str:
    """Return the current time in the format of events.jsonl."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def when(event: Event) -> datetime.datetime | None:
    """Return the time of an event; None if it has no valid one."""
    try:
        moment = datetime.datetime.fromisoformat(str(event.get("time")).replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)


def save_seconds(event: Event) -> float | None:
    """Return the duration of a save, all parts together; None if it was not recorded."""
    seconds = event.get("seconds")
    if isinstance(seconds, dict):
        return float(sum(seconds.values()))
    return float(seconds) if isinstance(seconds, int | float) else None


def hang_reports(run: Path) -> Iterator[tuple[Path, Event]]:
    """Yield the watchdogs' reports on killed ranks: each file, and the event that it stands for."""
    for path in sorted((run / names.ATTEMPTS).glob("*/words-rank-*.txt")):
        numbers = re.match(r"(\d+)(?:\.ended)?/words-rank-(\d+)", f"{path.parent.name}/{path.name}")
        try:
            reason = path.read_text(errors="replace").strip()[:_LONGEST_REASON]
            seconds = path.stat().st_mtime
        except OSError:
            continue
        if numbers and reason:
            moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
            event = {
                "time": moment.isoformat(timespec="milliseconds"),
                "event": "hang",
                "attempt": int(numbers[1]),
                "rank": int(numbers[2]),
                "reason": f"rank {int(numbers[2])}: {reason}",
            }
            yield path, event
