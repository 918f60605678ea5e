"""The state of a run at one moment, from the files that it leaves.

It works on any machine that sees the folder, without torch.
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
from fitb.rundir.checkpoints import last_committed_step
from fitb.rundir.events import read_events, save_seconds, when
from fitb.rundir.history import Attempt, attempts_of
from fitb.rundir.metrics import best_validation, rate, tail_records
from fitb.rundir.ownership import has_ended
from fitb.rundir.provenance import newest_code

logger = logging.getLogger(__name__)
State = Literal["not started", "running", "waiting", "finished", "stopped", "lost"]
OVER = ("finished", "stopped")
HEARTBEAT_LIMIT_S = 60.0  # heartbeats come every 10 s; clocks of hosts and file servers differ
QUIET_LIMIT_S = 600.0  # without heartbeats: compiling and validating write nothing for minutes
DECISION_S = 60.0  # in which a batch script decides what follows
_MEMBERS = (names.CONFIG, names.EVENTS, names.METRICS, names.CHECKPOINTS, names.LOGS)


@dataclass(frozen=True)
class Save:
    """The newest checkpoint.

    Args:
        step: that it holds.
        time: when it was committed.
        seconds: that it took; None where the run does not say.
        steps_at_risk: done since, and done again if all hosts failed now.
    """

    step: int
    time: datetime.datetime | None
    seconds: float | None
    steps_at_risk: int


@dataclass(frozen=True)
class Status:
    """A run at one moment.

    Args:
        run: its folder.
        state: in a word; waiting is for the next attempt, lost is without a word of its end.
        why: the state in a sentence.
        step: done, as far as it is known.
        steps: of the whole run; None where there is no configuration yet.
        steps_per_s: over the last minutes that were logged.
        left_s: at that rate, queue not included.
        expected_end: if it runs and goes on like this.
        heard_s: since the last sign of life.
        silent: ranks whose heartbeat is older than that of the others.
        save: the newest checkpoint.
        best_loss: of validation.
        best_step: where it was.
        attempts: all of them.
        slurm: state of the job, as Slurm has it.
        logs: folder or newest file of rank 0.
        export: the best student, where there is one.
        commit: of the code of the newest attempt.
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


@dataclass(frozen=True)
class Life:
    """Signs of life of the newest attempt.

    Args:
        heard_s: seconds since the newest.
        limit_s: after which silence means something.
        ended: the attempt's folder says that it is over.
        step: that the attempt has reached.
        silent: ranks that are behind the others.
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
    """Read where a run stands, as far as its files are whole.

    Args:
        job_state: asks the scheduler for the state of a job; None where it cannot tell.
        now_s: for tests; the clock otherwise.
        tell: gets a sentence on events that are damaged.
    Raises: ConfigError where the folder is not a run's.
    """
    if not any((run / member).exists() for member in _MEMBERS):
        raise ConfigError(
            f"{run} is not the folder of a run: none of {', '.join(_MEMBERS)} is there; give what"
            " --run_dir was, or runs/JOB_NAME"
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
    )


def state_of(
    attempts: Sequence[Attempt], life: Life, slurm: str | None, now_s: float
) -> tuple[State, str]:
    """Decide from what is known where the run stands, and say it in a sentence.

    Args:
        slurm: state of the newest attempt's job; None where Slurm is not there or has forgotten it.
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
    if last.decision == "requeue":
        if slurm in ENDED:
            return "stopped", f"{why}; but Slurm reports {slurm}: submit the same command again"
        return "waiting", why
    if last.exit_code is not None:
        fresh = last.ended is not None and now_s - last.ended.timestamp() < DECISION_S
        if pending or (fresh and slurm not in ENDED):
            return "waiting", why
        saved = "saved, " if last.exit_code == RESUME else ""
        return "stopped", f"{why}; {saved}start the same command again to go on"
    noted = "; ".join(last.notes)
    left = noted or "it left no word of its end"
    if slurm in ENDED:
        return "stopped", f"{left}, and Slurm reports {slurm}; see its log"
    if pending:
        return "waiting", f"{left}, and Slurm took it back into the queue"
    if life.ended:
        return "lost", f"{noted or 'the attempt ended without a word of why'}; see its log"
    if life.heard_s is not None and life.heard_s > life.limit_s:
        silent = f"nothing was heard of it for {duration(life.heard_s)}"
        return "lost", f"{noted or silent}; see its log"
    began = life.step > last.first_step or last.start_s
    return "running", "" if began else "it is starting"


def duration(seconds: float) -> str:
    """Say a time in its two largest units: 3 d 4 h, 5 min 7 s, 0.8 s."""
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
    except OSError:  # it went while we looked
        return 0.0


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _logged_step(run: Path, last: Attempt, records: Sequence[dict[str, Any]]) -> int:
    """The last logged step, where this attempt logged it: a replayed step is not logged again."""
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
    """The best validation: of the newest checkpoint's manifest, or a later one that was logged."""
    manifest = _json(names.checkpoint(run, last_committed_step(run)) / names.MANIFEST)
    saved = {names.BEST_BY: manifest.get("best_loss"), names.STEP: manifest.get("best_step")}
    known = type(saved[names.BEST_BY]) in (int, float) and type(saved[names.STEP]) is int
    return best_validation([*records, *([saved] if known else [])]) or (None, None)


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
