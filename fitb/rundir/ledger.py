"""Ledger of a run: what every second of every rank went to, from submission to the end.

    queue        eligible to start, and not started
    hold         between a requeue and the moment at which Slurm may start the job again
    start        from the allocation to the first step of an attempt, that step included
    training     steps that no earlier attempt has done
    repeated     steps that an earlier attempt has done, and not saved
    save         of it, what training waits for
    validation, export, data_wait      by the clock of each rank (clock.py)
    idle         in an allocation without a live attempt: from the last sign of life of one (each
                 rank leaves one every 10 s, and when it ends) to the next, or to the end

Each second of a rank is of one kind. Clocks of hosts and of Slurm may differ: what is left of the
time from submission to the end is `unaccounted`, and not spread over the kinds. Time between a job
that has ended and another one that was submitted later is none of the run's.

Goodput is the share of `training` in the time of the allocations; ETTR, the effective training time
ratio, its share in all time that the job was waiting or allocated (arXiv 2410.21680; the hold of a
requeue included).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fitb.base.fsio import read_json
from fitb.rundir import names
from fitb.rundir.clock import KINDS as OF_A_RANK
from fitb.rundir.clock import START, TRAINING
from fitb.rundir.events import Event, read_events, when
from fitb.rundir.metrics import tail_records

QUEUE, HOLD, IDLE = "queue", "hold", "idle"
KINDS = (*OF_A_RANK, QUEUE, HOLD, IDLE)
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
    """

    seconds: dict[str, float]
    wall_s: float

    @property
    def unaccounted_s(self) -> float:
        return self.wall_s - sum(self.seconds.values())

    @property
    def allocated_s(self) -> float:
        """Return the rank-seconds of the allocations."""
        return self.wall_s - sum(self.seconds[kind] for kind in WAITING)

    @property
    def goodput(self) -> float:
        """Return training by allocated time."""
        return self.seconds[TRAINING] / self.allocated_s if self.allocated_s > 0 else 0.0

    @property
    def ettr(self) -> float:
        """Return training by the time from submission to the end."""
        return self.seconds[TRAINING] / self.wall_s if self.wall_s > 0 else 0.0

    def grown(self, ranks: int, seconds: Mapping[str, float], wall_s: float) -> Ledger:
        """Return the ledger after every rank has spent more.

        Args:
            ranks: number of ranks.
            seconds: kind -> seconds of a rank since.
            wall_s: seconds since.
        """
        more = {kind: spent + ranks * seconds.get(kind, 0) for kind, spent in self.seconds.items()}
        return Ledger(more, self.wall_s + ranks * wall_s)

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
    seconds, wall_s, before_s = dict.fromkeys(KINDS, 0.0), 0.0, 0.0
    jobs = [list(group) for _, group in groupby(attempts, key=_allocation)]
    for place, group in enumerate(jobs):
        following = jobs[place + 1][0] if place + 1 < len(jobs) else None
        ended_s = _ended_s(events, group, following, beats, end_s)
        begun_s = _wait(seconds, group[0], before_s, beats)
        ranks = group[0].get("world_size", 1)
        submitted_s = max(before_s, group[0].get("submitted", begun_s))
        known = [beats[event["attempt"]] for event in group]
        for rank in range(ranks) if any(known) else ():  # else all of it is unaccounted
            _spend(seconds, [found.get(rank) for found in known], begun_s, ended_s)
        wall_s += ranks * (ended_s - submitted_s)
        before_s = ended_s
    return Ledger(seconds, wall_s)


def _allocation(attempt: Event) -> tuple[Any, ...]:
    """Return what the attempts of one allocation have in common."""
    if not attempt.get("job"):
        return (attempt["attempt"],)
    return attempt["job"], attempt.get("restart")


def _ended_s(
    events: Sequence[Event],
    group: Sequence[Event],
    following: Event | None,
    beats: dict[int, dict[int, Beat]],
    end_s: float | None,
) -> float:
    """Return when an allocation ended: requeued, decided about, or after its last sign of life."""
    if following and following.get("job") == group[0].get("job") and following.get("submitted"):
        return float(following["submitted"])
    if following is None and end_s is not None:
        return end_s
    last = group[-1]
    begin = events.index(last)
    until = events.index(following) if following else len(events)
    decided = [when(event) for event in events[begin:until] if "stalled" in event]
    signs = [beat.time_s for beat in beats[last["attempt"]].values()]
    signs += [moment.timestamp() for moment in decided if moment]
    return max(signs, default=_began_s(last, beats))


def _began_s(attempt: Event, beats: dict[int, dict[int, Beat]]) -> float:
    """Return when an allocation began, or else the first process of its first attempt."""
    if "began" in attempt:
        return float(attempt["began"])
    moment = when(attempt)
    found = [beat.began_s for beat in beats[attempt["attempt"]].values()]
    return min(found, default=moment.timestamp() if moment else 0.0)


def _wait(
    seconds: dict[str, float], first: Event, before_s: float, beats: dict[int, dict[int, Beat]]
) -> float:
    """Add the time before an allocation began, and return when it did."""
    begun_s, ranks = _began_s(first, beats), first.get("world_size", 1)
    if "submitted" in first:
        submitted_s = max(before_s, first["submitted"])
        eligible_s = min(max(submitted_s, first["eligible"]), begun_s)
        held = HOLD if first.get("restart") else QUEUE
        seconds[held] += ranks * (eligible_s - submitted_s)
        seconds[QUEUE] += ranks * (begun_s - eligible_s)
    return begun_s


def _spend(
    seconds: dict[str, float], beats: Sequence[Beat | None], begun_s: float, ended_s: float
) -> None:
    """Add the seconds of one rank in an allocation, from the last beats of its attempts."""
    at_s, gap = begun_s, START
    for beat in beats:
        if beat is None:  # its time is idle, as nothing is known of it
            gap = IDLE
            continue
        seconds[gap] += beat.began_s - at_s
        for kind, spent in beat.seconds.items():
            seconds[kind] += spent
        at_s, gap = beat.time_s, IDLE
    seconds[IDLE] += ended_s - at_s


def _beats(run: Path, number: int) -> dict[int, Beat]:
    """Return rank -> its last sign of life in an attempt; damaged ones are left out."""
    found = {}
    for path in names.attempt(run, number).glob("rank-*.json"):
        try:
            record = read_json(path, "time", "seconds")
            spent = {kind: float(record["seconds"][kind]) for kind in OF_A_RANK}
            beat = Beat(float(record["time"]), spent)
            if math.isfinite(beat.began_s):
                found[int(path.stem.removeprefix("rank-"))] = beat
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return found


def steps_done(run: Path) -> int:
    """Return the last step that an attempt of a run has done, saved or not; 0 for none."""
    done = [record[names.STEP] for record in tail_records(run)[-1:]]
    for path in (run / names.ATTEMPTS).glob("*/rank-*.json"):
        try:
            done.append(read_json(path, "step")["step"])
        except (OSError, ValueError):
            continue
    return max((step for step in done if type(step) is int), default=0)
