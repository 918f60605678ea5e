"""Whether an attempt that ended is followed by another one: decided by progress, not by count.

An attempt has made progress if it committed a later step than the one before it. A crash with
progress is started again without end. Attempts in a row without progress are counted: a crash is
given up at MAX_STALLED_CRASHES of them, an orderly leave at MAX_STALLED_LEAVES, because a job that
is preempted again and again while it starts has done nothing wrong. A new submission starts a new
count; the jobs of a chain (FITB_CHAIN names it) are one submission. Every decision is a line of
events.jsonl, and those lines are the only memory.

A run that is over has done.json. A finished one is not started again; a stop ends the chain that it
belongs to, while another submission, which may have mended the cause, begins afresh.

An attempt that has lost its run, to a later one or to another job, decides nothing about it.

`python -m fitb.cluster.progress RUN_DIR EXIT_CODE [SEEN]` decides for slurm/distill.sh: it prints
the reason and exits with 0 (done), 85 (start again) or 93 (do not). SEEN is what `num_attempts`
gave when the script began.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitb.errors import FINISHED, RESUME, STOP, FitbError
from fitb.fsio import append_line, mend_tail, read_json, read_lines, write_json

MAX_STALLED_CRASHES = 3
MAX_STALLED_LEAVES = 10
# How a shell reports a process that one of our signals ended before it could catch it.
ENDED_BY_OUR_SIGNAL = tuple(128 + s for s in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM))
ENDED = "ended"  # file in the folder of an attempt that is over
Event = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Which start of which job an attempt is.

    Args:
        job: id of the scheduler's job; empty where there is none.
        restart: how often Slurm has started that job before.
        chain: name of the chain that the job is a link of; empty where it is none.
    """

    job: str = ""
    restart: int = 0
    chain: str = ""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Source:
        return cls(
            env.get("SLURM_JOB_ID", ""),
            int(env.get("SLURM_RESTART_COUNT", "0")),
            env.get("FITB_CHAIN", ""),
        )

    def record(self) -> Event:
        """What a line of events.jsonl says of it."""
        return {"job": self.job} | ({"chain": self.chain} if self.chain else {})

    def submitted(self, record: Event) -> bool:
        """Whether the same submission (chain, or else job) wrote a record."""
        if self.chain:
            return bool(record.get("chain", "") == self.chain)
        return bool(record.get("job") == self.job)

    def lost_to(self, record: Event) -> bool:
        """Whether a record of an attempt is another job's or a later start's; one that names no
        job is nobody's."""
        if not (self.job and record.get("job")):
            return False
        return bool(
            str(record["job"]) != self.job or int(record.get("restart") or 0) > self.restart
        )


@dataclass(frozen=True)
class Decision:
    """What follows an attempt.

    Args:
        exit_code: FINISHED, RESUME (start again) or STOP.
        reason: one line for people.
        step: last committed step; 0 where nothing was committed.
        stalled: attempts in a row, this one included, that committed nothing later.
    """

    exit_code: int
    reason: str
    step: int
    stalled: int = 0


def last_committed_step(run_dir: Path) -> int:
    """Return the newest step under checkpoints/, or 0. A folder has this name once it is whole."""
    folders = (run_dir / "checkpoints").glob("step-*")
    found = (re.fullmatch(r"step-(\d+)", folder.name) for folder in folders)
    return max((int(match[1]) for match in found if match), default=0)


def now() -> str:
    """The time as events.jsonl has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def decide_from(
    events: Sequence[Event], *, exit_code: int, step: int, source: Source, why: str = ""
) -> Decision:
    """Decide from what is known, touching nothing.

    Args:
        events: of the run, oldest first.
        exit_code: of the attempt that ended, 128 + N where signal N ended it.
        step: last committed step now.
        source: of that attempt; attempts of another submission do not count here.
        why: it left or stops, where that is known better than by its exit code.
    """
    if exit_code == FINISHED:
        return Decision(FINISHED, "finished", step)
    if exit_code == STOP:
        return Decision(STOP, why or "the job said that starting it again would not help", step)
    before = next((e for e in reversed(events) if "stalled" in e), None)
    gained = step - (before["step"] if before else 0)
    counts = before is not None and before["event"] == "requeue" and source.submitted(before)
    stalled = 0 if gained > 0 else 1 + (before["stalled"] if before and counts else 0)

    if exit_code == RESUME:
        what, limit = why or "left as asked", MAX_STALLED_LEAVES
    elif exit_code in ENDED_BY_OUR_SIGNAL:
        what, limit = f"was told to leave before it was ready ({exit_code})", MAX_STALLED_LEAVES
    else:
        what, limit = f"crashed with exit code {exit_code}", MAX_STALLED_CRASHES
    if not stalled:
        return Decision(RESUME, f"{what} at step {step}, {gained} steps further than before", step)
    count = f"{stalled} of {limit} attempts in a row without a step after {step}"
    return Decision(STOP if stalled >= limit else RESUME, f"{what}; {count}", step, stalled)


def attempts_of(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event["event"] == "attempt"]


def num_attempts(run_dir: Path) -> int:
    """Return how many attempts a run has had."""
    return len(attempts_of(list(read_lines(run_dir / "events.jsonl"))))


def has_ended(run_dir: Path, number: int) -> bool:
    """Whether an attempt said that it is over, or a later one has shut it out.

    Earlier versions renamed its folder to `NNNN.ended`.
    """
    folder = run_dir / "attempts" / f"{number:04d}"
    if folder.exists():
        return (folder / ENDED).exists()
    return folder.with_name(f"{folder.name}.ended").exists()


def owner_of(run_dir: Path) -> Event | None:
    """Return what the newest attempt that has not ended says of itself, if there is one."""
    names = [path.name for path in (run_dir / "attempts").glob("*") if path.name.isdigit()]
    numbers = sorted(map(int, names), reverse=True)
    newest = next((number for number in numbers if not has_ended(run_dir, number)), None)
    if newest is None:
        return None
    try:
        owner: Event = read_json(run_dir / "attempts" / f"{newest:04d}" / "owner.json")
    except OSError:  # of an earlier version: it ended this moment, or has just begun
        return None
    return owner


def lost(
    events: Sequence[Event], owner: Event | None, exit_code: int, source: Source, seen: int
) -> str | None:
    """Say which attempt has taken the run from this one, or which one it never had it from.

    Args:
        owner: the newest attempt that has not ended.
        seen: number of attempts when this one began; those are older than it.
    """
    later = attempts_of(events)[seen:]
    if later and source.lost_to(later[-1]):
        return f"replaced by attempt {later[-1].get('attempt', '?')} of job {later[-1]['job']}"
    if exit_code == STOP and not later and owner and source.lost_to(owner):
        return f"the run is that of attempt {owner.get('attempt', '?')} of job {owner['job']}"
    return None


def decide(
    run_dir: Path,
    exit_code: int,
    *,
    source: Source | None = None,
    seen: int = 0,
    why: str = "",
    findings: Sequence[Event] = (),
) -> Decision:
    """Decide about the attempt that just ended, and write the decision down.

    Args:
        source: of that attempt.
        seen: what `num_attempts` gave when it began.
        why: as in `decide_from`.
        findings: events to write down before the decision.
    Returns: STOP, with nothing written, where the run is no longer this attempt's.
    Raises: SystemFault where the line cannot be written for want of space.
    """
    source = source or Source()
    path = run_dir / "events.jsonl"
    step = last_committed_step(run_dir)
    events = list(read_lines(path))
    taken = lost(events, owner_of(run_dir), exit_code, source, seen)
    if taken:
        return Decision(STOP, f"{taken}; this one leaves it alone", step)
    decision = decide_from(events, exit_code=exit_code, step=step, source=source, why=why)
    run_dir.mkdir(parents=True, exist_ok=True)
    mend_tail(path)
    for record in findings:
        append_line(path, {"time": now(), **record, **source.record()})
    if decision.exit_code != FINISHED:
        line = {
            "time": now(),
            "event": "requeue" if decision.exit_code == RESUME else "stop",
            "step": step,
            "exit_code": exit_code,
            "stalled": decision.stalled,
            **source.record(),
            "reason": decision.reason,
        }
        append_line(path, line)
    if decision.exit_code != RESUME:
        done = {
            "exit_code": decision.exit_code,
            "reason": decision.reason,
            "step": step,
            "job": source.job,
            "chain": source.chain,
            "time": now(),
        }
        write_json(run_dir / "done.json", done)
    return decision


def already_over(run_dir: Path, *, source: Source, steps: int) -> Decision | None:
    """Return the end that a run has come to, if it binds this attempt.

    Args:
        source: of the attempt that is about to start.
        steps: that the run is to have; where a finished one has fewer (early stopping), a new
            submission may go on.
    """
    path = run_dir / "done.json"
    try:
        done = read_json(path)
    except FileNotFoundError:
        return None
    same = source.submitted(done)
    what = f"{run_dir}: {done['reason']} at step {done['step']} (job {done['job'] or 'unknown'})"
    if done["exit_code"] == FINISHED and (same or done["step"] >= steps):
        return Decision(FINISHED, f"{what}; nothing is left to do", done["step"])
    if done["exit_code"] == STOP and source.chain and same:
        hint = "submit again under another FITB_CHAIN once that is mended"
        return Decision(STOP, f"{what}; this ends chain {source.chain}: {hint}", done["step"])
    return None


def begin_afresh(run_dir: Path) -> None:
    """Forget the end that a run has come to."""
    (run_dir / "done.json").unlink(missing_ok=True)


def main(args: Sequence[str]) -> int:
    if len(args) not in (2, 3) or not all(word.isdigit() for word in args[1:]):
        print("usage: python -m fitb.cluster.progress RUN_DIR EXIT_CODE [SEEN]", file=sys.stderr)
        return 2
    exit_code, seen = int(args[1]), int(args[2]) if len(args) == 3 else 0
    source = Source.from_env(os.environ)
    try:
        decision = decide(Path(args[0]), exit_code, source=source, seen=seen)
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    print(f"fitb: {decision.reason}")
    return decision.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
