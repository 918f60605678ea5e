"""The attempts of a run, from its events: when each began, what it did and why it ended."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fitb.rundir.events import Event, as_written, when


@dataclass(frozen=True)
class Attempt:
    """One start of the run.

    Args:
        number: 1 for the first; 0 for what ended before it opened the run.
        began: of its first event.
        ended: of its last word, None while there is none.
        world_size: processes.
        hosts: names.
        job: the scheduler's id.
        restart: how often the scheduler had started that job before.
        first_step: where it went on.
        last_step: latest step that an event names.
        start_s: seconds from its start to its first step, by part.
        exit_code: of the trainer, or else what the scheduler's side saw.
        reason: why it ended, in the trainer's words.
        decision: what follows (restart.py): requeue, stop or None.
        decided: its reason.
        decided_at: when.
        saves: events.
        notes: what else happened, a sentence each.
    """

    number: int
    began: datetime.datetime | None = None
    ended: datetime.datetime | None = None
    world_size: int | None = None
    hosts: list[str] = field(default_factory=list)
    job: str | None = None
    restart: int | None = None
    first_step: int = 0
    last_step: int = 0
    start_s: dict[str, float] = field(default_factory=dict)
    exit_code: int | None = None
    reason: str | None = None
    decision: str | None = None
    decided: str | None = None
    decided_at: datetime.datetime | None = None
    saves: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def attempts_of(events: Iterable[Event]) -> list[Attempt]:
    """Return the attempts of a run in order.

    Args:
        events: as they stand in events.jsonl. Those without a number belong to the newest attempt.
    """
    groups: dict[int, list[Event]] = {}
    newest = 0
    for event in map(as_written, events):
        begins = event.get("event") == "attempt"
        number = event.get("attempt", newest + begins)
        newest = max(newest, number)
        groups.setdefault(number, []).append(event)
    return [_attempt(number, groups[number]) for number in sorted(groups)]


def _attempt(number: int, events: list[Event]) -> Attempt:
    named = {str(event.get("event")): event for event in events}  # the last of each name
    begin, resume = named.get("attempt", {}), named.get("resume", {})
    decisions = [event for event in events if "stalled" in event]
    decision = decisions[-1] if decisions else {}
    stops = [event for event in events if event.get("event") == "stop" and "stalled" not in event]
    stop = stops[-1] if stops else {}
    saves = [event for event in events if event.get("event") == "save"]
    first = _whole(resume.get("step"))
    steps = [_whole(event.get("step")) for event in events if "stalled" not in event]
    notes = [NOTES[event["event"]](event) for event in events if event.get("event") in NOTES]
    job = begin.get("job") or decision.get("job")
    return Attempt(
        number=number,
        began=when(begin or (events[0] if events else {})),
        ended=when(stop or decision),
        world_size=begin.get("world_size"),
        hosts=list(begin.get("hosts") or []),
        job=str(job) if job else None,
        restart=begin.get("restart"),
        first_step=first,
        last_step=max(steps, default=first),
        start_s=_start_s(named),
        exit_code=stop.get("exit_code", decision.get("exit_code")),
        reason=stop.get("reason"),
        decision=decision.get("event"),
        decided="; ".join(str(event.get("reason")) for event in decisions) or None,
        decided_at=when(decision),
        saves=saves,
        notes=notes,
    )


def _start_s(named: dict[str, Event]) -> dict[str, float]:
    """Seconds by part, from the age that the process had at each of its first events."""
    ages = {name: named.get(name, {}).get("age_s") for name in ("attempt", "resume", "first_step")}
    if ages["attempt"] is None or ages["first_step"] is None:
        return {}
    if ages["resume"] is None:  # there was no checkpoint
        ages["resume"] = ages["attempt"]
    parts = {"imports": ages["attempt"], "models": ages["resume"] - ages["attempt"]}
    return parts | {"first step": ages["first_step"] - ages["resume"]}


def _whole(step: Any) -> int:
    return step if isinstance(step, int) else 0


def _rank(event: Event) -> str:
    host = f" on {event['host']}" if event.get("host") else ""
    step = f" at step {event['step']}" if event.get("step") is not None else ""
    return f"rank {event.get('rank', '?')}{host}{step}"


def _hang(event: Event) -> str:
    why = f" ({event['reason']})" if event.get("reason") else ""
    return f"{_rank(event)} hung{why}"


def _lost_rank(event: Event) -> str:
    return f"{_rank(event)} was lost"


def _exported(event: Event) -> str:
    return f"the export was made again at step {event.get('step', '?')}: {event.get('reason', '')}"


def _bad_host(event: Event) -> str:
    checks = ", ".join(map(str, event.get("checks") or [])) or "it does not say which"
    return f"host {event.get('host', '?')} failed its checks: {checks}"


NOTES: dict[str, Callable[[Event], str]] = {
    "hang": _hang,
    "lost_rank": _lost_rank,
    "bad_host": _bad_host,
    "exported": _exported,
}
