"""Status of a run, from the files in its folder.

It works without torch on any machine that sees the folder.
"""

from __future__ import annotations

import datetime
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from fitb.base.errors import FINISHED, RESUME, STOP, ConfigError
from fitb.base.fsio import read_json
from fitb.base.job_states import ENDED, WAITING
from fitb.rundir import names
from fitb.rundir.checkpoints import last_committed_step, recorded_best
from fitb.rundir.events import read_events, save_seconds, when
from fitb.rundir.history import Attempt, attempts_of
from fitb.rundir.ledger import Ledger, ledger
from fitb.rundir.metrics import best_validation, rate, tail_records
from fitb.rundir.ownership import has_ended
from fitb.rundir.provenance import newest_code
from fitb.rundir.restart import STARTS_AGAIN

logger = logging.getLogger(__name__)
State = Literal["not started", "running", "waiting", "finished", "stopped", "lost"]
OVER = ("finished", "stopped")
HEARTBEAT_LIMIT_S = 60.0  # heartbeats come every 10 s; clocks of hosts and file servers differ
QUIET_LIMIT_S = 600.0  # for runs without heartbeats: compiling and validating write nothing
DECISION_S = 60.0  # that the batch script may take to decide what follows
_MEMBERS = (names.CONFIG, names.EVENTS, names.METRICS, names.CHECKPOINTS, names.LOGS)


@dataclass(frozen=True)
class Save:
    """The newest checkpoint.

    Args:
        step: step of the checkpoint.
        time: time of the commit; None if unknown.
        seconds: duration of the save; None if unknown.
        steps_at_risk: steps done since, which a crash now would repeat.
    """

    step: int
    time: datetime.datetime | None
    seconds: float | None
    steps_at_risk: int


@dataclass(frozen=True)
class Status:
    """Status of a run at one moment.

    Args:
        run: path of the run folder.
        state: one word; waiting: for the next attempt; lost: silent without a recorded end.
        why: reason of the state, one sentence.
        step: last known step.
        steps: total steps of the run; None if there is no configuration yet.
        steps_per_s: rate over the last logged minutes; None if unknown.
        left_s: remaining seconds at that rate, without queueing; None if unknown.
        expected_end: expected end at that rate; None if the run is not running.
        heard_s: seconds since the last heartbeat or write; None if there was none.
        silent: ranks whose heartbeat is older than that of the others.
        save: newest checkpoint; None if there is none.
        best_loss: lowest validation loss; None before the first validation.
        best_step: step of that loss.
        attempts: all attempts, oldest first.
        slurm: Slurm's state of the newest job; None if unknown.
        logs: newest log file of rank 0, or the folder of the logs.
        export: folder of the best student; None if there is none.
        commit: git commit of the newest attempt's code; None if unknown.
        ledger: what its time went to, until now if it is running; None if unknown.
    """

    run: str
    state: State
    why: str
    step: int
    steps: int | None
    steps_per_s: float | None
    left_s: float | None
    expected_end: datetime.datetime | None
    heard_s: float | None
    silent: list[str]
    save: Save | None
    best_loss: float | None
    best_step: int | None
    attempts: list[Attempt]
    slurm: str | None
    logs: str
    export: str | None
    commit: str | None
    ledger: Ledger | None


@dataclass(frozen=True)
class Life:
    """Liveness of the newest attempt.

    Args:
        heard_s: seconds since its last heartbeat or write; None if there was none.
        limit_s: seconds of silence after which it counts as lost.
        ended: whether its ownership has ended.
        step: step that it has reached.
        silent: ranks whose heartbeat is older than that of the others.
    """

    heard_s: float | None
    limit_s: float
    ended: bool
    step: int
    silent: list[str]


def status(
    run: Path,
    *,
    job_state: Callable[[str], str | None] = lambda job: None,
    now_s: float | None = None,
    tell: Callable[[str], None] = logger.warning,
) -> Status:
    """Return the status of a run; damaged files are skipped.

    Args:
        run: run folder.
        job_state: returns the scheduler's state of a job id; None if unknown.
        now_s: Unix time in seconds; None is the clock.
        tell: called with a message on damaged events.
    Raises: ConfigError if the folder is not a run.
    """
    if not any((run / member).exists() for member in _MEMBERS):
        raise ConfigError(
            f"{run} is not the folder of a run: none of {', '.join(_MEMBERS)} exists; give the"
            " --run_dir of the run, or runs/JOB_NAME"
        )
    now_s = time.time() if now_s is None else now_s
    attempts = attempts_of(read_events(run, tell))
    last = attempts[-1] if attempts else Attempt(0)
    records = tail_records(run)
    config = _config(run)
    steps_per_s = rate(records, last.first_step) or rate(records, 0)
    life = _life(run, last, now_s, config, steps_per_s)
    life = replace(life, step=max(last.last_step, life.step, _logged_step(run, last, records)))
    slurm = job_state(last.job) if last.job else None
    state, why = state_of(attempts, life, slurm, now_s)
    step, steps = life.step, _whole(config.get("steps"))
    left_s = None
    if steps_per_s and steps and state not in OVER:
        left_s = max(0, steps - step) / steps_per_s
    best_loss, best_step = _best(run, records)
    export = run / names.EXPORT
    return Status(
        run=str(run),
        state=state,
        why=why,
        step=step,
        steps=steps,
        steps_per_s=steps_per_s,
        left_s=left_s,
        expected_end=_moment(now_s + left_s) if left_s and state == "running" else None,
        heard_s=life.heard_s,
        silent=life.silent if state in ("running", "lost") else [],
        save=_save(run, attempts, step if state in ("running", "lost") else 0),
        best_loss=best_loss,
        best_step=best_step,
        attempts=attempts,
        slurm=slurm,
        logs=_log(run, last),
        export=str(export) if export.is_dir() else None,
        commit=_commit(newest_code(run) or {}),
        ledger=ledger(run, now_s if state == "running" else None),
    )


def state_of(
    attempts: Sequence[Attempt], life: Life, slurm: str | None, now_s: float
) -> tuple[State, str]:
    """Return the state of a run and the reason, one sentence; a pure function.

    Args:
        attempts: attempts of the run, oldest first.
        life: liveness of the newest one.
        slurm: Slurm's state of its job; None if unknown.
        now_s: Unix time in seconds.
    """
    if not attempts:
        return "not started", "no attempt has begun"
    last = attempts[-1]
    if last.exit_code == FINISHED:
        return "finished", last.reason or "all steps done"
    why = "; ".join(filter(None, (last.reason, last.decided))) or "without a reason"
    pending = slurm in WAITING
    if last.decision == "stop" or last.exit_code == STOP:
        return "stopped", why
    if last.decision in STARTS_AGAIN:
        if slurm in ENDED:
            return "stopped", f"{why}; but Slurm reports {slurm}: submit the same command again"
        return "waiting", why
    if last.exit_code is not None:
        fresh = last.ended is not None and now_s - last.ended.timestamp() < DECISION_S
        if pending or (fresh and slurm not in ENDED):
            return "waiting", why
        saved = "saved, " if last.exit_code == RESUME else ""
        return "stopped", f"{why}; {saved}start the same command again to resume"
    noted = "; ".join(last.notes)
    left = noted or "it recorded no end"
    if slurm in ENDED:
        return "stopped", f"{left}, and Slurm reports {slurm}; see its log"
    if pending:
        return "waiting", f"{left}, and Slurm has requeued it"
    if life.ended:
        return "lost", f"{noted or 'the attempt ended without recording why'}; see its log"
    if life.heard_s is not None and life.heard_s > life.limit_s:
        silent = f"no sign of life for {duration(life.heard_s)}"
        return "lost", f"{noted or silent}; see its log"
    began = life.step > last.first_step or last.start_s
    return "running", "" if began else "it is starting"


def duration(seconds: float) -> str:
    """Format a duration in its two largest units: 3 d 4 h, 5 min 7 s, 0.8 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    parts: list[str] = []
    left = round(seconds)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def _config(run: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load((run / names.CONFIG).read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _life(
    run: Path, last: Attempt, now_s: float, config: dict[str, Any], steps_per_s: float | None
) -> Life:
    folder, ended = names.attempt(run, last.number), has_ended(run, last.number)
    beats = {path.name: path for path in folder.glob("rank-*.json")}
    if beats and not ended:
        times = {name: _mtime(path) for name, path in beats.items()}
        newest = max(times.values())
        silent = sorted(name for name, t in times.items() if newest - t > HEARTBEAT_LIMIT_S)
        steps = [_whole(_json(path).get("step")) for path in beats.values()]
        return Life(
            heard_s=max(0.0, now_s - newest),
            limit_s=HEARTBEAT_LIMIT_S,
            ended=False,
            step=max(filter(None, steps), default=0),
            silent=[_who(beats[name]) for name in silent],
        )
    written = [run / names.METRICS, run / names.EVENTS, *(run / names.LOGS).glob("*")]
    times_s = [_mtime(path) for path in written if path.is_file()]
    track = config.get("track")
    every = _whole(track.get("every_steps")) if isinstance(track, dict) else None
    limit_s = max(QUIET_LIMIT_S, 5 * (every or 10) / steps_per_s) if steps_per_s else QUIET_LIMIT_S
    heard_s = max(0.0, now_s - max(times_s)) if times_s else None
    return Life(heard_s, limit_s, ended, 0, [])


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _who(path: Path) -> str:
    rank = int(re.sub(r"\D", "", path.stem) or 0)
    return f"rank {rank} on {_json(path).get('host', '?')}"


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _logged_step(run: Path, last: Attempt, records: Sequence[dict[str, Any]]) -> int:
    """Return the last logged step if this attempt logged it: replayed steps are not logged."""
    if not records or (last.began and _mtime(run / names.METRICS) < last.began.timestamp()):
        return 0
    return int(records[-1][names.STEP])


def _save(run: Path, attempts: Sequence[Attempt], step: int) -> Save | None:
    saved = last_committed_step(run)
    if not saved:
        return None
    events = [event for a in attempts for event in a.saves if event.get("step") == saved]
    event = events[-1] if events else {}
    found = _mtime(names.checkpoint(run, saved))
    moment = when(event) or (_moment(found) if found else None)
    return Save(saved, moment, save_seconds(event), max(0, step - saved))


def _best(run: Path, records: Sequence[dict[str, Any]]) -> tuple[float | None, int | None]:
    """Return the best validation, of the newest checkpoint's manifest or of the last records."""
    loss, step = recorded_best(names.checkpoint(run, last_committed_step(run)))
    saved = [{names.BEST_BY: loss, names.STEP: step}] if None not in (loss, step) else []
    return best_validation([*records, *saved]) or (None, None)


def _log(run: Path, last: Attempt) -> str:
    files = [path for path in (run / names.LOGS).glob("*") if path.suffix in (".out", ".err")]
    of_job = [
        path for path in files if last.job and re.match(rf"{re.escape(last.job)}[._]", path.name)
    ]
    first = [path for path in of_job or files if re.search(r"[._]0(_log)?\.", path.name)]
    return str(max(first or of_job or files, key=_mtime, default=run / names.LOGS))


def _commit(code: Mapping[str, Any]) -> str | None:
    commit = code.get("commit")
    if not isinstance(commit, str):
        return None
    return f"{commit[:9]}{' with local changes' if code.get('diff') else ''}"
