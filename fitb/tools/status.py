"""`fitb status`: a run's status as text or JSON, once or repeatedly."""

from __future__ import annotations

import datetime
import functools
import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fitb.base.errors import ConfigError
from fitb.base.fsio import to_json
from fitb.cluster.slurm import reported_state
from fitb.rundir.clock import TRAINING
from fitb.rundir.history import Attempt
from fitb.rundir.ledger import Ledger
from fitb.rundir.status import OVER, Save, Status, duration, status

logger = logging.getLogger(__name__)
CLEAR = "\033[H\033[J"  # cursor to the top, erase below it
MAX_HOSTS = 4


@dataclass(frozen=True)
class StatusConfig:
    """Print a run's status.

    Args:
        run: folder of the run.
        watch: repeat until the run ends or Ctrl-C; one line each time if not on a terminal.
        every_s: seconds between two repetitions.
        json: print one JSON object; with watch, one per line.
    """

    run: str
    watch: bool = False
    every_s: float = 5.0
    json: bool = False

    def __post_init__(self) -> None:
        if not self.every_s > 0:
            raise ConfigError(f"every_s={self.every_s}; expected seconds above 0")


def show(config: StatusConfig) -> int:
    """Print the status, with `watch` repeatedly, until the run ends or Ctrl-C; return an exit code.

    With `watch`, wait for the run's folder, which its job may not have made yet.

    Raises: ConfigError if the folder is not a run's.
    """
    run = Path(config.run)
    tell = functools.cache(logger.warning)  # each warning once
    drawn = config.watch and not config.json and sys.stdout.isatty()
    try:
        if config.watch and not run.exists():
            logger.info("%s does not exist yet; waiting for its first attempt", run)
        while config.watch and not run.exists():
            time.sleep(config.every_s)
        while True:
            found = status(run, job_state=reported_state, tell=tell)
            if config.json:
                text = to_json(as_json(found))
            else:
                text = render(found) if drawn or not config.watch else line(found)
            print(f"{CLEAR if drawn else ''}{text}", flush=True)
            if not config.watch or found.state in OVER:
                return 0
            time.sleep(config.every_s)
    except KeyboardInterrupt:
        if not config.watch:
            raise
        return 0


def as_json(found: Status) -> dict[str, Any]:
    """Return JSON-able values: times in ISO 8601, `saves` of an attempt as their number."""
    iso = functools.partial(datetime.datetime.isoformat, timespec="milliseconds")
    plain: dict[str, Any] = json.loads(json.dumps(asdict(found), default=iso))
    for attempt in plain["attempts"]:
        attempt["saves"] = len(attempt["saves"])
    plain["ledger"] = found.ledger and found.ledger.record()
    return plain


def line(found: Status) -> str:
    """Render the state on one line."""
    return f"{found.run}: {state_in_words(found)}"


def state_in_words(found: Status) -> str:
    """Describe the state: progress, time left, and why."""
    of = f" of {found.steps:,} ({found.step / found.steps:.1%})" if found.steps else ""
    text = {"waiting": "waiting for its next attempt"}.get(found.state, found.state)
    if found.attempts:
        text += f" at step {found.step:,}{of}"
    if found.state == "running" and found.left_s:
        text += f", {duration(found.left_s)} left"
    return text + (f": {found.why}" if found.why else "")


def render(found: Status) -> str:
    """Render the status for people, with times in the local time zone."""
    lines = [line(found), *(f"{name:10} {text}" for name, text in _facts(found))]
    if found.attempts:
        last = replace(found.attempts[-1], last_step=found.step)
        lines += ["attempts", *map(_attempt, [*found.attempts[:-1], last])]
    return "\n".join(lines)


def _facts(found: Status) -> Iterator[tuple[str, str]]:
    if found.steps_per_s:
        text = f"{found.steps_per_s:.3g} steps/s over the last minutes"
        if found.left_s:
            text += f"; {duration(found.left_s)} of work left"
        if found.expected_end:
            text += f", ends about {_local(found.expected_end)}"
        yield "rate", text
    if found.save:
        yield "last save", _save(found, found.save)
    if found.best_loss is not None:
        step = f" at step {found.best_step:,}" if found.best_step is not None else ""
        yield "best", f"validation loss {found.best_loss:.4f}{step}"
    if found.ledger:
        yield "goodput", in_words(found.ledger)
    if found.heard_s is not None and found.state in ("running", "lost"):
        yield "heard", f"{duration(found.heard_s)} ago"
    if found.silent:
        yield "silent", ", ".join(found.silent)
    if found.slurm and found.attempts[-1].job:
        yield "Slurm", f"job {found.attempts[-1].job}: {found.slurm}"
    yield "logs", found.logs
    if found.export:
        yield "export", found.export
    if found.commit:
        yield "code", found.commit


def in_words(ledger: Ledger) -> str:
    """Describe goodput, ETTR, and where the rest of the time went, the largest share first."""
    shares = sorted(ledger.shares().items(), key=lambda item: -abs(item[1]))
    lost = [f"{kind.replace('_', ' ')} {share:.1%}" for kind, share in shares if kind != TRAINING]
    return (
        f"{ledger.goodput:.1%} of {ledger.allocated_s / 3600:.3g} rank hours; since the submission"
        f" {ledger.ettr:.1%} (ETTR), {', '.join(lost[:4])}"
    )


def _save(found: Status, save: Save) -> str:
    text = f"step {save.step:,}"
    if save.time:
        ago_s = datetime.datetime.now(datetime.timezone.utc) - save.time
        text += f", {duration(max(0.0, ago_s.total_seconds()))} ago"
    if save.seconds is not None:
        text += f", took {duration(save.seconds)}"
    if found.state in ("running", "lost"):
        text += f"; {save.steps_at_risk:,} steps done since"
    return text


def _attempt(attempt: Attempt) -> str:
    words = [f"  {attempt.number:>2}", _local(attempt.began) if attempt.began else "?"]
    if attempt.world_size:
        words.append(f"{attempt.world_size} processes on {_hosts(attempt.hosts)}")
    if attempt.job:
        restart = f" restart {attempt.restart}" if attempt.restart else ""
        words.append(f"job {attempt.job}{restart}")
    words.append(f"steps {attempt.first_step:,} -> {attempt.last_step:,}")
    if attempt.began and attempt.ended:
        seconds = (attempt.ended - attempt.began).total_seconds()
        words.append(duration(max(0.0, seconds)))
    if attempt.start_s:
        words.append(f"start {duration(sum(attempt.start_s.values()))}")
    reason = "; ".join(filter(None, (attempt.reason, attempt.decided)))
    if reason:
        code = f"exit {attempt.exit_code}: " if attempt.exit_code is not None else ""
        words.append(code + reason)
    return "  ".join([*words, *attempt.notes])


def _hosts(hosts: list[str]) -> str:
    if len(hosts) > MAX_HOSTS:
        return f"{len(hosts)} hosts ({', '.join(hosts[: MAX_HOSTS - 1])}, ...)"
    return ", ".join(hosts) or "unknown hosts"


def _local(moment: datetime.datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
