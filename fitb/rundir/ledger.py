"""Ledger of a run: what every second of every rank went to, from submission to the end.

    queue        eligible to start, and not started
    hold         between a requeue and the moment at which Slurm may start the job again; up to its
                 start, where Slurm has not told that moment
    start        from the allocation to the first step of an attempt, that step included
    training     steps that no earlier attempt has done
    repeated     steps that an earlier attempt has done, and not saved
    save         of it, what training waits for
    validation, export, data_wait      by the clock of each rank (clock.py)
    idle         in an allocation without a live attempt: all of one in which none began; from the
                 last sign of life of one (each
                 rank leaves one every 10 s, and when it ends) to the next, or to the end; and while
                 the job is suspended

Each second of a rank is of one kind. What the kinds do not cover is `unaccounted`, and not spread
over them: ranks that have left nothing (as those of earlier versions), and clocks of hosts and
Slurm that differ, which may make it negative. Time
between a job that has ended and another one that was submitted later is none of the run's.

Goodput is the share of `training` in the time of the allocations; ETTR, the effective training time
ratio, its share in all time that the job was waiting or allocated (arXiv 2410.21680; the hold of a
requeue included). Ranks that have left nothing count in neither.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fitb.base.errors import SystemFault
from fitb.base.fsio import read_json, write_json
from fitb.rundir import names
from fitb.rundir.clock import IDLE, START, TRAINING
from fitb.rundir.clock import KINDS as OF_A_RANK
from fitb.rundir.events import Event, read_events, when
from fitb.rundir.metrics import tail_records

QUEUE, HOLD = "queue", "hold"
KINDS = (*OF_A_RANK, QUEUE, HOLD)
WAITING = (QUEUE, HOLD)


@dataclass(frozen=True)
class Beat:
    """Last sign of life of a rank in an attempt.

    Args:
        time_s: Unix time in seconds.
        seconds: what the seconds of its process have gone to, by kind.
    """

    time_s: float
    seconds: dict[str, float]

    @property
    def began_s(self) -> float:
        """Return when its process started, Unix time in seconds."""
        return self.time_s - sum(self.seconds.values())


@dataclass(frozen=True)
class Ledger:
    """Seconds of a run, summed over its ranks.

    Args:
        seconds: kind -> rank-seconds.
        wall_s: rank-seconds from submission to the end, or to the last sign of life.
        unknown_s: those of them of ranks that have left nothing.
    """

    seconds: dict[str, float]
    wall_s: float
    unknown_s: float = 0.0

    @property
    def unaccounted_s(self) -> float:
        return self.wall_s - sum(self.seconds.values())

    @property
    def allocated_s(self) -> float:
        """Return the rank-seconds of the allocations, as far as known."""
        return self.wall_s - self.unknown_s - sum(self.seconds[kind] for kind in WAITING)

    @property
    def goodput(self) -> float:
        """Return training by allocated time."""
        return self.seconds[TRAINING] / self.allocated_s if self.allocated_s > 0 else 0.0

    @property
    def ettr(self) -> float:
        """Return training by the time from submission to the end."""
        known_s = self.wall_s - self.unknown_s
        return self.seconds[TRAINING] / known_s if known_s > 0 else 0.0

    def grown(self, ranks: int, seconds: Mapping[str, float], wall_s: float) -> Ledger:
        """Return the ledger after every rank has spent more.

        Args:
            ranks: number of ranks.
            seconds: kind -> seconds of a rank since.
            wall_s: seconds since.
        """
        more = {kind: spent + ranks * seconds.get(kind, 0) for kind, spent in self.seconds.items()}
        return Ledger(more, self.wall_s + ranks * wall_s, self.unknown_s)

    def shares(self) -> dict[str, float]:
        """Return each kind's share of the time since the submission, and the unaccounted one."""
        seconds, whole_s = {**self.seconds, "unaccounted": self.unaccounted_s}, self.wall_s
        return {kind: spent / whole_s if whole_s else 0.0 for kind, spent in seconds.items()}

    def record(self) -> dict[str, Any]:
        """Return goodput, ETTR, the hours of all ranks in allocations, and the seconds by kind."""
        seconds = {**self.seconds, "unaccounted": self.unaccounted_s}
        return {
            "goodput": round(self.goodput, 4),
            "ettr": round(self.ettr, 4),
            "rank_hours": round(self.allocated_s / 3600, 3),
            "rank_seconds": {kind: round(spent, 1) for kind, spent in seconds.items()},
        }


def ledger(run: Path, end_s: float | None = None, live: Beat | None = None) -> Ledger | None:
    """Return the ledger of a run; None if no attempt has left the seconds of its ranks.

    Args:
        run: run folder.
        end_s: when the run ended, or now, Unix time in seconds; None is the decision about its last
            attempt, or the last sign of life.
        live: sign of life of every rank of the last attempt, instead of what they have left.
    """
    events = list(read_events(run))
    attempts = [event for event in events if event["event"] == "attempt" and "attempt" in event]
    beats = {event["attempt"]: _beats(run, event["attempt"]) for event in attempts}
    if live and attempts:
        last = attempts[-1]
        beats[last["attempt"]] = dict.fromkeys(range(last.get("world_size", 1)), live)
    if not any(beats.values()):
        return None
    seconds, wall_s, unknown_s, before_s = dict.fromkeys(KINDS, 0.0), 0.0, 0.0, 0.0
    jobs = [list(group) for _, group in groupby(_begins(events, attempts), key=_allocation)]
    ranks = 1
    for place, group in enumerate(jobs):
        first, following = group[0], jobs[place + 1][0] if place + 1 < len(jobs) else None
        same_job = place > 0 and first.get("job") and first["job"] == jobs[place - 1][0].get("job")
        begun_s, ranks = _began_s(first, beats), int(first.get("world_size", ranks))
        ended_s = max(begun_s, _ended_s(events, group, following, beats, end_s))
        submitted_s = first.get("submitted", before_s if same_job else begun_s)
        submitted_s = min(max(before_s, submitted_s), begun_s)
        eligible_s = first.get("eligible", begun_s)  # unknown: the queue counts as hold
        eligible_s = min(max(submitted_s, eligible_s), begun_s)
        seconds[HOLD if first.get("restart") else QUEUE] += ranks * (eligible_s - submitted_s)
        seconds[QUEUE] += ranks * (begun_s - eligible_s)
        wall_s += ranks * (ended_s - (min(before_s, begun_s) if same_job else submitted_s))
        if "attempt" not in first:
            seconds[IDLE] += ranks * (ended_s - begun_s)
        for rank in range(ranks) if "attempt" in first else ():
            found = [beats[event["attempt"]].get(rank) for event in group]
            unknown_s += _spend(seconds, found, begun_s, ended_s)
        before_s = ended_s
    return Ledger(seconds, wall_s, unknown_s)


def _begins(events: Sequence[Event], attempts: Sequence[Event]) -> list[Event]:
    """Return the attempts, and the decisions about allocations in which none began."""
    begun = {_allocation(event) for event in attempts}

    def orphan(event: Event) -> bool:
        known = "stalled" in event and {"began", "job", "restart"} <= event.keys()
        return known and _allocation(event) not in begun

    return [e for e in events if (e["event"] == "attempt" and "attempt" in e) or orphan(e)]


def _allocation(attempt: Event) -> tuple[Any, ...]:
    """Return what the attempts of one allocation have in common."""
    if not attempt.get("job"):
        return (attempt["attempt"],)
    return attempt["job"], attempt.get("restart")


def _ended_s(
    events: Sequence[Event],
    group: Sequence[Event],
    following: Event | None,
    beats: Mapping[Any, dict[int, Beat]],
    end_s: float | None,
) -> float:
    """Return when an allocation ended: requeued, decided about, or after its last sign of life."""
    if following and _is_next(group[0], following) and following.get("submitted"):
        return float(following["submitted"])
    if following is None and end_s is not None:
        return end_s
    last = group[-1]
    begin = events.index(last)
    until = events.index(following) if following else len(events)
    decided = [
        when(event)
        for event in events[begin:until]
        if "stalled" in event and event.get("job", "") == last.get("job", "")
    ]
    signs = [beat.time_s for beat in beats.get(last.get("attempt"), {}).values()]
    signs += [moment.timestamp() for moment in decided if moment]
    return max(signs, default=_began_s(last, beats))


def _is_next(first: Event, following: Event) -> bool:
    """Return whether an allocation is the next one of the same job."""
    next_of = first.get("job"), (first.get("restart") or 0) + 1
    return bool(first.get("job")) and next_of == (following.get("job"), following.get("restart"))


def _began_s(attempt: Event, beats: Mapping[Any, dict[int, Beat]]) -> float:
    """Return when an allocation began, or else the first process of its first attempt."""
    if "began" in attempt:
        return float(attempt["began"])
    moment = when(attempt)
    found = [beat.began_s for beat in beats.get(attempt.get("attempt"), {}).values()]
    return min(found, default=moment.timestamp() if moment else 0.0)


def _spend(
    seconds: dict[str, float], beats: Sequence[Beat | None], begun_s: float, ended_s: float
) -> float:
    """Add the seconds of a rank in an allocation, from the last beats of its attempts.

    Returns: seconds of which nothing is known, as an attempt has left no beat.
    """
    at_s, gap, unknown_s = begun_s, START, 0.0
    for beat in (*beats, Beat(ended_s, {})):
        if beat is None:
            gap = ""
            continue
        between_s = max(0.0, beat.began_s - at_s)
        if gap:
            seconds[gap] += between_s
        else:
            unknown_s += between_s
        for kind, spent in beat.seconds.items():
            seconds[kind] += spent
        at_s, gap = beat.time_s, IDLE
    return unknown_s


def _beats(run: Path, number: int) -> dict[int, Beat]:
    """Return rank -> its last sign of life in an attempt; damaged ones are left out."""
    found = {}
    for rank, record in _records(names.attempt(run, number)).items():
        try:
            spent = {kind: float(record["seconds"].get(kind, 0)) for kind in OF_A_RANK}
            beat = Beat(float(record["time"]), spent)
            if math.isfinite(beat.began_s):
                found[rank] = beat
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    return found


def _records(attempt: Path) -> dict[int, dict[str, Any]]:
    """Return rank -> its last heartbeat; of an attempt that a later one has replaced, one file."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        together = read_json(attempt / names.HEARTBEATS)
        return {int(rank): record for rank, record in together.items() if type(record) is dict}
    found = {}
    for path in attempt.glob("rank-*.json"):
        with contextlib.suppress(OSError, ValueError):
            found[int(path.stem.removeprefix("rank-"))] = read_json(path, "step")
    return found


def put_together(run: Path, attempt: int) -> None:
    """Write the last heartbeats of each attempt before this one into one file, as the run's owner.

    Hundreds of attempts of hundreds of ranks are many files to read. Failures are ignored.
    """
    for number in range(1, attempt):
        folder = names.attempt(run, number)
        if folder.is_dir() and not (folder / names.HEARTBEATS).exists():
            with contextlib.suppress(OSError, SystemFault):
                write_json(folder / names.HEARTBEATS, _records(folder))


def steps_done(run: Path) -> int:
    """Return the last step that an attempt of a run has done, saved or not; 0 for none."""
    done = [record[names.STEP] for record in tail_records(run)[-1:]]
    for folder in (run / names.ATTEMPTS).glob("*"):
        done += [record.get("step") for record in _records(folder).values()]
    return max((step for step in done if type(step) is int), default=0)
