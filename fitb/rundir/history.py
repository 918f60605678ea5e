"""History of a run: its attempts, reconstructed from events.jsonl."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, field

from fitb.rundir.events import Event, as_written, when


@dataclass(frozen=True)
class Attempt:
    """One attempt, that is, one start of a run.

    Args:
        number: 1 for the first; 0 for starts that ended before they opened the run.
        began: time of its first event.
        ended: time of its stop, or of the decision that followed; None while there is neither.
        world_size: number of processes.
        hosts: host names.
        job: job id of the scheduler.
        restart: how often the scheduler had restarted that job.
        first_step: step that it resumed from.
        last_step: latest step in its events.
        start_s: seconds from process start to first step, by phase.
        exit_code: exit code that the trainer recorded, or else the one that the decision saw.
        reason: why it ended, as the trainer recorded it.
        decision: restart decision (restart.py): restart, requeue, stop or None.
        decided: reason of the decision.
        decided_at: time of the decision.
        saves: its save events.
        notes: other incidents, one sentence each.
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
        events: events of the run, oldest first; one without a number is of the newest attempt.
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
    first = resume.get("step", 0)
    steps = [event["step"] for event in events if "step" in event and "stalled" not in event]
    job = begin.get("job") or decision.get("job")
    return Attempt(
        number=number,
        began=when(begin or (events[0] if events else {})),
        ended=when(stop or decision),
        world_size=begin.get("world_size"),
        hosts=begin.get("hosts", []),
        job=job or None,
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
        notes=list(filter(None, map(_note, events))),
    )


def _start_s(named: dict[str, Event]) -> dict[str, float]:
    """Return seconds by phase, from the age of the process at each of its first events."""
    ages = {name: named.get(name, {}).get("age_s") for name in ("attempt", "resume", "first_step")}
    if ages["attempt"] is None or ages["first_step"] is None:
        return {}
    if ages["resume"] is None:  # there was no checkpoint
        ages["resume"] = ages["attempt"]
    parts = {"imports": ages["attempt"], "models": ages["resume"] - ages["attempt"]}
    return parts | {"first step": ages["first_step"] - ages["resume"]}


def _note(event: Event) -> str | None:
    """Return a sentence on an incident; None for other events."""
    name, host = event.get("event"), event.get("host")
    if name == "bad_host":
        checks = ", ".join(event.get("checks", [])) or "unknown"
        return f"host {host or '?'} failed its checks: {checks}"
    if name == "slow_host":
        rank, percent = event.get("rank", "?"), event.get("percent", "?")
        return f"host {host or '?'} (rank {rank}) was {percent} % slower than the others"
    step = event.get("step")
    if name == "exported":
        return f"the export was rewritten at step {step or '?'}: {event.get('reason', '')}"
    where = f" on {host}" if host else ""
    where += f" at step {step}" if step is not None else ""
    rank = f"rank {event.get('rank', '?')}{where}"
    if name == "hang":
        return f"{rank} hung ({event['reason']})" if event.get("reason") else f"{rank} hung"
    return f"{rank} was lost" if name == "lost_rank" else None
