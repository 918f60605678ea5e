"""Restart decision: whether an ended attempt is followed by another one, decided by progress.

A run is finished if the newest attempt of this start recorded a `stop` with exit code 0 in
events.jsonl. The exit code of whatever started the tasks (srun, torchrun, a container) does not
prove success: srun exits with 0 even if it has started nothing.

    exit code of the tasks     own stop has code 0     own stop has another code, or there is none
    0                          finished                that code; without a stop a crash
    85, 128 + our signals      finished                graceful shutdown, even before the attempt
    93                         finished                stop, even before the attempt: an invalid
                                                       configuration is refused before it begins
    others                     finished                crash

An attempt makes progress if it commits a later step than the one before it. A crash with progress
is always restarted. Consecutive attempts without progress are counted: after MAX_STALLED_CRASHES a
crash is given up, after MAX_STALLED_LEAVES a graceful shutdown (being preempted repeatedly while
starting is not the job's fault). A new submission starts a new count; all jobs of a chain
(FITB_CHAIN) are one submission. Each decision is a line of events.jsonl, the only memory.

A crash is followed by another start in the same allocation if there is room: the batch script has
found all hosts well, and before the stop signal there is MARGIN_S more time than the last start
took. It is at once after an attempt with progress, and else after BACK_OFF_S. Not so the second
crash in a row without progress, or one before an attempt began: the job is requeued, since other
hosts or a later time may help.

A run that is over has done.json. A finished run is not started again; a stopped one ends its chain,
while another submission, which may have fixed the cause, starts afresh. An attempt that has lost
its run, to a later attempt or to another job, decides nothing.

`python -m fitb.rundir.restart RUN_DIR EXIT_CODE [SEEN [ROOM_S]]` decides for a batch script: it
prints the reason and exits with 0 (done), 11 (start the tasks again here), 85 (requeue the job) or
93 (stop). SEEN is the number of attempts before this start; without EXIT_CODE it is printed. ROOM_S
is the time in seconds before the stop signal, 0 if the tasks cannot be started again here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fitb.base import signals
from fitb.base.errors import CRASH, FINISHED, RESUME, STOP, FitbError
from fitb.base.fsio import append_line, mend_tail, read_json, write_json
from fitb.base.world import job_id, starts_of
from fitb.rundir import names
from fitb.rundir.checkpoints import last_committed_step
from fitb.rundir.events import Event, as_written, now, num_attempts, read_events
from fitb.rundir.ledger import ledger
from fitb.rundir.ownership import current_owner

logger = logging.getLogger(__name__)
MAX_STALLED_CRASHES = 3
MAX_STALLED_LEAVES = 10
AGAIN = 11  # exit code of this module: start the tasks again in this allocation
RECORDED_AS = {AGAIN: "restart", RESUME: "requeue", STOP: "stop"}  # event of a decision
STARTS_AGAIN = ("restart", "requeue")
START_S = 60.0  # assumed until a first step has been timed
MARGIN_S = 60.0  # for the decision, the wait and the checks before a start
BACK_OFF_S = 10.0  # before a start in the same allocation after an attempt without progress
# Exit codes of a process that one of our signals killed before its handler was installed.
ENDED_BY_OUR_SIGNAL = tuple(128 + number for number in signals.BY_SCHEDULER)


@dataclass(frozen=True)
class Source:
    """Job and restart that an attempt belongs to.

    Args:
        job: job id of the scheduler; empty without one.
        restart: how often Slurm has restarted that job.
        chain: name of the job's chain; empty if it is in none.
        hosts: node list of the job in Slurm's notation; empty if unknown.
        start: how often the batch script has started the tasks again since.
        began: when the batch script began, Unix time in seconds; None if unknown.
    """

    job: str = ""
    restart: int = 0
    chain: str = ""
    hosts: str = ""
    start: int = 0
    began: int | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Source:
        restart, start = starts_of(env)
        chain, hosts = env.get("FITB_CHAIN", ""), env.get("SLURM_JOB_NODELIST", "")
        began = env.get("FITB_BEGAN", "")
        return cls(
            job_id(env), restart, chain, hosts, start, int(began) if began.isdigit() else None
        )

    def record(self) -> Event:
        """Return the fields of events.jsonl that identify the submission, and its start."""
        begun = {} if self.began is None else {"restart": self.restart, "began": self.began}
        return {"job": self.job} | ({"chain": self.chain} if self.chain else {}) | begun

    def submitted(self, record: Event) -> bool:
        """Return whether a record is of this submission (the same chain, or else the same job)."""
        if self.chain:
            return bool(record.get("chain", "") == self.chain)
        return bool(record.get("job") == self.job)

    def has_begun(self, attempt: Event) -> bool:
        """Return whether an attempt is of this job and restart."""
        theirs = str(attempt.get("job") or ""), int(attempt.get("restart") or 0)
        return theirs == (self.job, self.restart)

    def lost_to(self, record: Event) -> bool:
        """Return whether a record is of another job or a later start; False if it has no job."""
        if not (self.job and record.get("job")):
            return False
        theirs = int(record.get("restart") or 0), int(record.get("start") or 0)
        return str(record["job"]) != self.job or theirs > (self.restart, self.start)


@dataclass(frozen=True)
class Decision:
    """What follows an attempt.

    Args:
        exit_code: FINISHED, AGAIN (start the tasks here), RESUME (requeue) or STOP.
        reason: one line for users.
        step: last committed step; 0 for none.
        stalled: consecutive attempts without progress, including this one.
    """

    exit_code: int
    reason: str
    step: int
    stalled: int = 0


def decide_from(
    events: Sequence[Event],
    *,
    exit_code: int,
    step: int,
    source: Source,
    why: str = "",
    room_s: float = 0.0,
) -> Decision:
    """Decide what follows an attempt; a pure function.

    Args:
        events: events of the run, oldest first.
        exit_code: exit code of the attempt, as from `believed`; 128 + N if signal N killed it.
        step: last committed step.
        source: submission of the attempt; attempts of others are not counted.
        why: reason of the end, if known better than by its exit code.
        room_s: seconds before the stop signal in which an attempt can be started in the same
            allocation; 0 if it cannot.
    """
    if exit_code == FINISHED:
        return Decision(FINISHED, "finished", step)
    if exit_code == STOP:
        return Decision(STOP, why or "the job said that starting it again would not help", step)
    before = next((e for e in reversed(events) if e.keys() >= {"stalled", "step"}), None)
    gained = step - (before["step"] if before else 0)
    counts = before is not None and before["event"] in STARTS_AGAIN and source.submitted(before)
    stalled = 0 if gained > 0 else 1 + (before["stalled"] if before and counts else 0)

    if exit_code == RESUME:
        what, limit = why or "shut down as requested", MAX_STALLED_LEAVES
    elif exit_code in ENDED_BY_OUR_SIGNAL:
        what, limit = f"was signalled before it was ready ({exit_code})", MAX_STALLED_LEAVES
    else:
        what, limit = why or f"crashed with exit code {exit_code}", MAX_STALLED_CRASHES
    here = (
        limit == MAX_STALLED_CRASHES and stalled <= 1 and room_s > last_start_s(events) + MARGIN_S
    )
    again = AGAIN if here else RESUME
    if not stalled:
        return Decision(again, f"{what} at step {step}, {gained} steps further than before", step)
    count = f"{stalled} of {limit} attempts in a row without a step after {step}"
    return Decision(STOP if stalled >= limit else again, f"{what}; {count}", step, stalled)


def last_start_s(events: Sequence[Event]) -> float:
    """Return the seconds from the newest start that made a step to that step, or START_S."""
    first = [event for event in events if event["event"] == "first_step"]
    return float(first[-1].get("age_s", START_S)) if first else START_S


def newest_attempt(events: Sequence[Event], seen: int = 0) -> list[Event]:
    """Return the events since the newest attempt began, its `attempt` event first.

    Args:
        events: events of the run, oldest first.
        seen: number of attempts before this start; the result is empty if none has begun since.
    """
    begins = [place for place, event in enumerate(events) if event["event"] == "attempt"]
    return list(events[begins[-1] :]) if begins[seen:] else []


def own_end(attempt: Sequence[Event]) -> int | None:
    """Return the exit code that an attempt recorded itself; None if it recorded none.

    Args:
        attempt: events from `newest_attempt`.
    """
    stops = [event for event in attempt if event["event"] == "stop" and "stalled" not in event]
    own = [stop for stop in stops if stop.get("attempt") == attempt[0].get("attempt")]
    return own[-1].get("exit_code") if own else None


def believed(exit_code: int, attempt: Sequence[Event], source: Source) -> tuple[int, str]:
    """Return the effective exit code of an attempt, and why it crashed, if more is known.

    Args:
        exit_code: exit code of the tasks, or of what started them.
        attempt: events of the attempt that they began, from `newest_attempt`.
        source: job of the tasks.
    """
    own, where = own_end(attempt), f" on {source.hosts}" if source.hosts else ""
    if own is not None and FINISHED in (own, exit_code):
        return own, ""
    if exit_code == FINISHED and attempt:
        return CRASH, f"the tasks{where} ended with 0, but their attempt recorded no end"
    if exit_code == FINISHED:
        return CRASH, (
            f"no attempt began{where}, although the launcher ended with 0: see its messages in the"
            f" job's log; can {source.hosts or 'this host'} write the run folder?"
        )
    if attempt or exit_code in (RESUME, STOP, *ENDED_BY_OUR_SIGNAL):
        return exit_code, ""
    return exit_code, f"crashed with exit code {exit_code} before an attempt began{where}"


def lost(
    events: Sequence[Event], owner: Event | None, exit_code: int, source: Source, seen: int
) -> str | None:
    """Return why this attempt does not own the run: a later attempt, or an owner it never replaced.

    Args:
        events: events of the run, oldest first.
        owner: owner of the newest attempt that has not ended.
        exit_code: exit code of this attempt's tasks.
        source: job of this attempt.
        seen: number of attempts before this one.
    """
    later = [event for event in events if event["event"] == "attempt"][seen:]
    if later and source.lost_to(later[-1]):
        return f"replaced by attempt {later[-1].get('attempt', '?')} of job {later[-1]['job']}"
    if exit_code == STOP and not later and owner and source.lost_to(owner):
        return f"the run is owned by attempt {owner.get('attempt', '?')} of job {owner['job']}"
    return None


def decide(
    run_dir: Path,
    exit_code: int,
    *,
    source: Source | None = None,
    seen: int = 0,
    why: str = "",
    findings: Sequence[Event] = (),
    room_s: float = 0.0,
) -> Decision:
    """Decide what follows the attempt that just ended, and record the decision.

    Args:
        run_dir: run folder.
        exit_code: exit code of its tasks, or of what started them.
        source: job of that attempt.
        seen: number of attempts before it began.
        why: as for `decide_from`.
        findings: events to record before the decision.
        room_s: as for `decide_from`; an end before an attempt began leaves none.
    Returns: the decision; STOP, with nothing recorded, if this attempt has lost the run.
    Raises: SystemFault if the disk is full.
    """
    source = source or Source()
    path = run_dir / names.EVENTS
    step = last_committed_step(run_dir)
    events = list(read_events(run_dir))
    owner = current_owner(run_dir)
    holder = as_written(asdict(owner)) if owner else None
    if taken := lost(events, holder, exit_code, source, seen):
        return Decision(STOP, f"{taken}; this one does not touch it", step)
    ended = newest_attempt(events, seen)
    exit_code, known = believed(exit_code, ended, source)
    decision = decide_from(
        events,
        exit_code=exit_code,
        step=step,
        source=source,
        why=why or known,
        room_s=room_s if ended else 0.0,
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    mend_tail(path)
    for finding in findings:
        append_line(path, {"time": now(), **finding, **source.record()})
    if decision.exit_code != FINISHED:
        line = {
            "time": now(),
            "event": RECORDED_AS[decision.exit_code],
            "step": step,
            "exit_code": exit_code,
            "stalled": decision.stalled,
            **source.record(),
            "reason": decision.reason,
        }
        append_line(path, line)
    if decision.exit_code in (FINISHED, STOP):
        _write_done(run_dir, decision, source)
    return decision


def _write_done(run_dir: Path, decision: Decision, source: Source) -> None:
    done = {
        "exit_code": decision.exit_code,
        "reason": decision.reason,
        "step": decision.step,
        "job": source.job,
        "chain": source.chain,
        "time": now(),
    }
    attempts = [event for event in read_events(run_dir) if event["event"] == "attempt"]
    own = bool(attempts) and source.has_begun(attempts[-1])
    if found := ledger(run_dir, time.time() if own else None):
        done["ledger"] = found.record()
    write_json(run_dir / names.DONE, done)


def already_over(run_dir: Path, *, source: Source, steps: int) -> Decision | None:
    """Return the recorded end of a run, if it applies to an attempt that is about to start.

    Args:
        run_dir: run folder.
        source: job of that attempt.
        steps: steps that the run is to have; a new submission may continue a finished run that has
            fewer, as after early stopping.
    """
    try:
        done = as_written(read_json(run_dir / names.DONE, "exit_code", "reason", "step"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # a run without an end is started, and comes to the same end
        logger.warning("%s; the run counts as not over", error)
        return None
    if not done.keys() >= {"exit_code", "reason", "step"}:
        return None
    same = source.submitted(done)
    ended = own_end(newest_attempt(list(read_events(run_dir))))
    what = (
        f"{run_dir}: {done['reason']} at step {done['step']} (job {done.get('job') or 'unknown'})"
    )
    # Earlier versions trusted a 0 of srun; a real early stop is also in the events.
    finished = done["step"] >= steps or (same and ended == FINISHED)
    if done["exit_code"] == FINISHED and finished:
        return Decision(FINISHED, f"{what}; nothing is left to do", done["step"])
    if done["exit_code"] == STOP and source.chain and same:
        hint = "submit again under another FITB_CHAIN once that is fixed"
        return Decision(STOP, f"{what}; this ends chain {source.chain}: {hint}", done["step"])
    return None


def begin_afresh(run_dir: Path) -> None:
    """Set done.json aside as done.N.json, before a run is continued."""
    number = 1
    while (run_dir / names.done_before(number)).exists():
        number += 1
    with contextlib.suppress(FileNotFoundError):
        (run_dir / names.DONE).rename(run_dir / names.done_before(number))


def main(args: Sequence[str]) -> int:
    if not 1 <= len(args) <= 4 or not all(word.isdigit() for word in args[1:]):
        usage = "python -m fitb.rundir.restart RUN_DIR [EXIT_CODE [SEEN [ROOM_S]]]"
        print(f"usage: {usage}", file=sys.stderr)
        return 2
    run_dir, source = Path(args[0]), Source.from_env(os.environ)
    exit_code, seen, room_s = (*map(int, args[1:]), 0, 0, 0)[:3]
    try:
        if len(args) == 1:
            print(num_attempts(run_dir))
            return 0
        decision = decide(run_dir, exit_code, source=source, seen=seen, room_s=room_s)
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    print(f"fitb: {decision.reason}", flush=True)
    if decision.exit_code == AGAIN and decision.stalled:
        time.sleep(BACK_OFF_S)
    return decision.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
