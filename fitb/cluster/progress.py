"""Whether an attempt that ended is followed by another one: decided by progress, not by count.

An attempt has made progress if it committed a later step than the one before it. A crash with
progress is started again without end. Attempts in a row without progress are counted: a crash is
given up at MAX_STALLED_CRASHES of them, an orderly leave at MAX_STALLED_LEAVES, because a job that
is preempted again and again while it starts has done nothing wrong. A new submission starts a new
count. Every decision is a line of events.jsonl, and those lines are the only memory.

`python -m fitb.cluster.progress RUN_DIR EXIT_CODE` decides for slurm/distill.sh: it prints the
reason and exits with 0 (done), 85 (requeue) or 93 (stop).
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitb.errors import FINISHED, RESUME, STOP, FitbError
from fitb.fsio import append_line, mend_tail, read_lines

MAX_STALLED_CRASHES = 3
MAX_STALLED_LEAVES = 10
# How a shell reports a process that one of our signals ended before it could catch it.
ENDED_BY_OUR_SIGNAL = tuple(128 + s for s in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM))


@dataclass(frozen=True)
class Decision:
    """What follows an attempt.

    Args:
        exit_code: FINISHED, RESUME (requeue) or STOP.
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


def decide_from(
    events: Iterable[dict[str, Any]], *, exit_code: int, step: int, job: str
) -> Decision:
    """Decide from what is known, touching nothing.

    Args:
        events: of the run, oldest first.
        exit_code: of the attempt that ended, 128 + N where signal N ended it.
        step: last committed step now.
        job: id of the scheduler's job; the count of another job's attempts does not matter here.
    """
    if exit_code == FINISHED:
        return Decision(FINISHED, "finished", step)
    if exit_code == STOP:
        return Decision(STOP, "the job said that starting it again would not help", step)
    before = next((e for e in reversed(list(events)) if "stalled" in e), None)
    gained = step - (before["step"] if before else 0)
    same_job = before is not None and before["event"] == "requeue" and before["job"] == job
    stalled = 0 if gained > 0 else 1 + (before["stalled"] if before and same_job else 0)

    if exit_code == RESUME:
        what, limit = "left as asked", MAX_STALLED_LEAVES
    elif exit_code in ENDED_BY_OUR_SIGNAL:
        what, limit = f"was told to leave before it was ready ({exit_code})", MAX_STALLED_LEAVES
    else:
        what, limit = f"crashed with exit code {exit_code}", MAX_STALLED_CRASHES
    if not stalled:
        return Decision(RESUME, f"{what} at step {step}, {gained} steps further than before", step)
    count = f"{stalled} of {limit} attempts in a row without a step after {step}"
    return Decision(STOP if stalled >= limit else RESUME, f"{what}; {count}", step, stalled)


def decide(run_dir: Path, exit_code: int, *, job: str = "") -> Decision:
    """Decide about the attempt that just ended, and add the decision to events.jsonl.

    Raises: SystemFault where the line cannot be written for want of space.
    """
    path = run_dir / "events.jsonl"
    step = last_committed_step(run_dir)
    mend_tail(path)
    decision = decide_from(read_lines(path), exit_code=exit_code, step=step, job=job)
    if decision.exit_code != FINISHED:
        run_dir.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now(datetime.timezone.utc)
        line = {
            "time": now.isoformat(timespec="milliseconds"),
            "event": "requeue" if decision.exit_code == RESUME else "stop",
            "step": step,
            "exit_code": exit_code,
            "stalled": decision.stalled,
            "job": job,
            "reason": decision.reason,
        }
        append_line(path, line)
    return decision


def main(args: Sequence[str]) -> int:
    if len(args) != 2 or not args[1].isdigit():
        print("usage: python -m fitb.cluster.progress RUN_DIR EXIT_CODE", file=sys.stderr)
        return 2
    try:
        decision = decide(Path(args[0]), int(args[1]), job=os.environ.get("SLURM_JOB_ID", ""))
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    print(f"fitb: {decision.reason}")
    return decision.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
