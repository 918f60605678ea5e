"""Whether an attempt that ended is followed by another one: decided by progress, not by count.

A run is finished if the newest attempt that began under this start wrote so into events.jsonl: a
`stop` of its own with exit code 0. The exit code of whatever started the tasks (srun, torchrun, a
container, a user's script) proves no success; srun exits with 0 where it has started nothing.

    exit code of the tasks     the attempt's own stop says 0     it says another code or nothing
    0                          finished                          its code; without one a crash
    85, 128 + our signals      finished                          told to leave, begun or not
    93                         finished                          stop, begun or not: a configuration
                                                                 is refused before an attempt begins
    others                     finished                          a crash

An attempt has made progress if it committed a later step than the one before it. A crash with
progress is started again without end. Attempts in a row without progress are counted: a crash is
given up at MAX_STALLED_CRASHES of them, an orderly leave at MAX_STALLED_LEAVES, because a job that
is preempted again and again while it starts has done nothing wrong. A new submission starts a new
count; the jobs of a chain (FITB_CHAIN names it) are one submission. Every decision is a line of
events.jsonl, and those lines are the only memory.

A run that is over has done.json. A finished one is not started again; a stop ends the chain that it
belongs to, while another submission, which may have mended the cause, begins afresh.

An attempt that has lost its run, to a later one or to another job, decides nothing about it.

`python -m fitb.rundir.restart RUN_DIR EXIT_CODE [SEEN]` decides for a batch script: it prints the
reason and exits with 0 (done), 85 (start again) or 93 (do not). SEEN is what `num_attempts` gave
when the script began; without an exit code it is what this prints.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fitb.base import signals
from fitb.base.errors import CRASH, FINISHED, RESUME, STOP, FitbError
from fitb.base.fsio import append_line, mend_tail, read_json, write_json
from fitb.base.world import job_id
from fitb.rundir import names
from fitb.rundir.checkpoints import last_committed_step
from fitb.rundir.events import Event, as_written, now, read_events
from fitb.rundir.ownership import current_owner

logger = logging.getLogger(__name__)
MAX_STALLED_CRASHES = 3
MAX_STALLED_LEAVES = 10
# How a shell reports a process that one of our signals ended before it could catch it.
ENDED_BY_OUR_SIGNAL = tuple(128 + number for number in signals.BY_SCHEDULER)


@dataclass(frozen=True)
class Source:
    """Which start of which job an attempt is.

    Args:
        job: id of the scheduler's job; empty where there is none.
        restart: how often Slurm has started that job before.
        chain: name of the chain that the job is a link of; empty where it is none.
        hosts: of the job, as Slurm writes them; empty where they are not known.
    """

    job: str = ""
    restart: int = 0
    chain: str = ""
    hosts: str = ""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Source:
        return cls(
            job_id(env),
            int(env.get("SLURM_RESTART_COUNT", "0")),
            env.get("FITB_CHAIN", ""),
            env.get("SLURM_JOB_NODELIST", ""),
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


def decide_from(
    events: Sequence[Event], *, exit_code: int, step: int, source: Source, why: str = ""
) -> Decision:
    """Decide from what is known, touching nothing.

    Args:
        events: of the run, oldest first.
        exit_code: of the attempt that ended, as `believed` gives it; 128 + N where signal N ended
            it.
        step: last committed step now.
        source: of that attempt; attempts of another submission do not count here.
        why: it ended, where that is known better than by its exit code.
    """
    if exit_code == FINISHED:
        return Decision(FINISHED, "finished", step)
    if exit_code == STOP:
        return Decision(STOP, why or "the job said that starting it again would not help", step)
    before = next((e for e in reversed(events) if e.keys() >= {"stalled", "step"}), None)
    gained = step - (before["step"] if before else 0)
    counts = before is not None and before["event"] == "requeue" and source.submitted(before)
    stalled = 0 if gained > 0 else 1 + (before["stalled"] if before and counts else 0)

    if exit_code == RESUME:
        what, limit = why or "left as asked", MAX_STALLED_LEAVES
    elif exit_code in ENDED_BY_OUR_SIGNAL:
        what, limit = f"was told to leave before it was ready ({exit_code})", MAX_STALLED_LEAVES
    else:
        what, limit = why or f"crashed with exit code {exit_code}", MAX_STALLED_CRASHES
    if not stalled:
        return Decision(RESUME, f"{what} at step {step}, {gained} steps further than before", step)
    count = f"{stalled} of {limit} attempts in a row without a step after {step}"
    return Decision(STOP if stalled >= limit else RESUME, f"{what}; {count}", step, stalled)


def newest_attempt(events: Sequence[Event], seen: int = 0) -> list[Event]:
    """Return what happened since the newest attempt began, its `attempt` event first.

    Args:
        events: of the run, oldest first.
        seen: so many attempts are older than this start; empty where none has begun since.
    """
    begins = [place for place, event in enumerate(events) if event["event"] == "attempt"]
    return list(events[begins[-1] :]) if begins[seen:] else []


def own_end(attempt: Sequence[Event]) -> int | None:
    """Return the exit code that an attempt wrote down itself, None where it did not.

    Args:
        attempt: from `newest_attempt`.
    """
    stops = [event for event in attempt if event["event"] == "stop" and "stalled" not in event]
    own = [stop for stop in stops if stop.get("attempt") == attempt[0].get("attempt")]
    return own[-1].get("exit_code") if own else None


def believed(exit_code: int, attempt: Sequence[Event], source: Source) -> tuple[int, str]:
    """Return the exit code that holds for an attempt, and why it crashed where more is known.

    Args:
        exit_code: of the tasks, or of what started them.
        attempt: that they began, from `newest_attempt`.
        source: of the tasks.
    """
    own, where = own_end(attempt), f" on {source.hosts}" if source.hosts else ""
    if own is not None and FINISHED in (own, exit_code):
        return own, ""
    if exit_code == FINISHED and attempt:
        return CRASH, f"the tasks{where} ended with 0, and their attempt without a word of its end"
    if exit_code == FINISHED:
        return CRASH, (
            f"no attempt began{where}, though what starts the tasks ended with 0: its messages in"
            f" the job's log say why; can {source.hosts or 'this host'} write the run folder?"
        )
    if attempt or exit_code in (RESUME, STOP, *ENDED_BY_OUR_SIGNAL):
        return exit_code, ""
    return exit_code, f"crashed with exit code {exit_code} before an attempt began{where}"


def _begins(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event["event"] == "attempt"]


def num_attempts(run_dir: Path) -> int:
    """Return how many attempts a run has had."""
    return len(_begins(list(read_events(run_dir))))


def lost(
    events: Sequence[Event], owner: Event | None, exit_code: int, source: Source, seen: int
) -> str | None:
    """Say which attempt has taken the run from this one, or which one it never had it from.

    Args:
        owner: the newest attempt that has not ended.
        seen: number of attempts when this one began; those are older than it.
    """
    later = _begins(events)[seen:]
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
        exit_code: of its tasks, or of what started them.
        source: of that attempt.
        seen: what `num_attempts` gave when it began.
        why: as in `decide_from`.
        findings: events to write down before the decision.
    Returns: STOP, with nothing written, where the run is no longer this attempt's.
    Raises: SystemFault where the line cannot be written for want of space.
    """
    source = source or Source()
    path = run_dir / names.EVENTS
    step = last_committed_step(run_dir)
    events = list(read_events(run_dir))
    owner = current_owner(run_dir)
    record = as_written(asdict(owner)) if owner else None
    taken = lost(events, record, exit_code, source, seen)
    if taken:
        return Decision(STOP, f"{taken}; this one leaves it alone", step)
    exit_code, found = believed(exit_code, newest_attempt(events, seen), source)
    decision = decide_from(events, exit_code=exit_code, step=step, source=source, why=why or found)
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
        write_json(run_dir / names.DONE, done)
    return decision


def end_of(run_dir: Path) -> Event | None:
    """Return what done.json says; None where it is not there, or so damaged that it says nothing.

    Without it a run is started, and comes to the same end.
    """
    path = run_dir / names.DONE
    try:
        done = as_written(read_json(path, "exit_code", "reason", "step"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s; the run is taken as one that is not over", error)
        return None
    return done if done.keys() >= {"exit_code", "reason", "step"} else None


def already_over(run_dir: Path, *, source: Source, steps: int) -> Decision | None:
    """Return the end that a run has come to, if it binds this attempt.

    Args:
        source: of the attempt that is about to start.
        steps: that the run is to have; where a finished one has fewer (early stopping), a new
            submission may go on.
    """
    done = end_of(run_dir)
    if done is None:
        return None
    same = source.submitted(done)
    ended = own_end(newest_attempt(list(read_events(run_dir))))
    what = (
        f"{run_dir}: {done['reason']} at step {done['step']} (job {done.get('job') or 'unknown'})"
    )
    # An earlier version took a 0 of srun for an end. An early stop is in the events, too.
    finished = done["step"] >= steps or (same and ended == FINISHED)
    if done["exit_code"] == FINISHED and finished:
        return Decision(FINISHED, f"{what}; nothing is left to do", done["step"])
    if done["exit_code"] == STOP and source.chain and same:
        hint = "submit again under another FITB_CHAIN once that is mended"
        return Decision(STOP, f"{what}; this ends chain {source.chain}: {hint}", done["step"])
    return None


def begin_afresh(run_dir: Path) -> None:
    """Forget the end that a run has come to."""
    (run_dir / names.DONE).unlink(missing_ok=True)


def main(args: Sequence[str]) -> int:
    if len(args) not in (1, 2, 3) or not all(word.isdigit() for word in args[1:]):
        print("usage: python -m fitb.rundir.restart RUN_DIR [EXIT_CODE [SEEN]]", file=sys.stderr)
        return 2
    run_dir, source = Path(args[0]), Source.from_env(os.environ)
    exit_code, seen = (*map(int, args[1:]), 0, 0)[:2]
    try:
        if len(args) == 1:
            print(num_attempts(run_dir))
            return 0
        decision = decide(run_dir, exit_code, source=source, seen=seen)
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    print(f"fitb: {decision.reason}")
    return decision.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
