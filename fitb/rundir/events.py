"""events.jsonl: what happened to a run, a JSON object per line.

The trainer and the restart decision append to it, and so did other versions of both: a field of an
unexpected type is dropped, and a name that is not known is passed over by whoever reads.
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
_LARGEST = 2**53  # beyond it a number is no whole float64
_WHOLE = ("attempt", "step", "exit_code", "world_size", "restart", "stalled", "rank")
_TEXTS = ("time", "event", "reason", "job", "chain", "host", "checkpoint")
_MOST_WORDS = 1000


def read_events(run: Path, tell: Callable[[str], None] = logger.warning) -> Iterator[Event]:
    """Yield the events of a run, oldest first, as far as they can be read.

    Last words of ranks that no later attempt has made events of yet come at the end.

    Args:
        tell: gets a sentence on damaged lines, which are passed over.
    """
    for event in read_records(run / names.EVENTS, "event", tell=tell):
        found = as_written(event)
        if "event" in found:
            yield found
    for _, event in last_words(run):
        yield event


def as_written(event: Event) -> Event:
    """Return the fields of an event that are of the type that fitb writes."""

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
    """Return the time as events.jsonl has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def when(event: Event) -> datetime.datetime | None:
    """Return the time of an event; None where it has none that can be read."""
    try:
        moment = datetime.datetime.fromisoformat(str(event.get("time")).replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)


def save_seconds(event: Event) -> float | None:
    """Return how long a save took, all parts together; None where it does not say."""
    seconds = event.get("seconds")
    if isinstance(seconds, dict):
        return float(sum(seconds.values()))
    return float(seconds) if isinstance(seconds, int | float) else None


def words_of(rank: int) -> str:
    """Return the name of the file in an attempt's folder that holds why its rank was ended."""
    return f"words-rank-{rank:05d}.txt"


def last_words(run: Path) -> Iterator[tuple[Path, Event]]:
    """Yield the last words of ranks that could not write an event themselves, each as one."""
    for path in sorted((run / names.ATTEMPTS).glob("*/words-rank-*.txt")):
        numbers = re.match(r"(\d+)(?:\.ended)?/words-rank-(\d+)", f"{path.parent.name}/{path.name}")
        try:
            said = path.read_text(errors="replace").strip()[:_MOST_WORDS]
            seconds = path.stat().st_mtime
        except OSError:
            continue
        if numbers and said:
            moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
            yield (
                path,
                {
                    "time": moment.isoformat(timespec="milliseconds"),
                    "event": "hang",
                    "attempt": int(numbers[1]),
                    "rank": int(numbers[2]),
                    "reason": f"rank {int(numbers[2])}: {said}",
                },
            )
