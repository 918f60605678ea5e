"""`fitb sync`: send a run's metrics to Weights & Biases as one run, whatever its attempts sent.

Online it asks the server for its last step and sends what follows, so it can be repeated at any
time, even while the run is training. Offline it writes one segment for `wandb sync`, because the
segments of several attempts would overwrite each other.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fitb.base import fsio
from fitb.base.errors import CRASH, ConfigError, DataError, FitbError, SystemFault
from fitb.base.redact import redacted
from fitb.rundir import names, wandb_id
from fitb.rundir.events import read_events
from fitb.rundir.names import STEP
from fitb.training.wandb_mirror import (
    WandbRun,
    begin_service,
    end_service,
    held_step,
    reason_of,
    records_after,
    start,
    target_of,
)

MERGED = "wandb-merged"
_CHECKS, _CHECK_WAIT_S = 3, 2.0  # of the server's last step after an upload; it may lag


@dataclass(frozen=True)
class SyncConfig:
    """Send a run's metrics to Weights & Biases as one run, whatever its attempts sent.

    Args:
        run: run folder; may stand first without its flag.
        offline: write one segment into RUN/wandb-merged instead, for `wandb sync`.
        project: W&B project; null for the run's own.
        entity: W&B team or user; null for the run's own.
        wait_s: longest time for the upload, seconds.
    """

    run: str = ""
    offline: bool = False
    project: str | None = None
    entity: str | None = None
    wait_s: float = 600.0

    def __post_init__(self) -> None:
        if not self.wait_s > 0:
            raise ConfigError(f"wait_s is {self.wait_s:g}; give a number of seconds above 0")


def sync(config: SyncConfig) -> str:
    """Send a run's metrics, or write them as one segment; return a sentence on what was done.

    Raises:
        ConfigError: the folder is not a run's.
        DataError: the run has no metrics, or a damaged line, after which W&B would take no step.
        SystemFault: W&B refuses or cannot be reached.
    """
    run = Path(config.run)
    target = _target(run, config)
    records = list(records_after(fsio.read_lines(run / names.METRICS, STEP), -1))
    if not records:
        raise DataError(
            f"{run / names.METRICS} holds no metrics; they begin at {STEP} = track.every_steps"
        )
    events = list(read_events(run))
    return (_write if config.offline else _send)(run, target, records, events, config.wait_s)


def summary_of(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the number of events of each kind, and how the last attempt ended."""
    counts: Counter[str] = Counter()
    last: dict[str, Any] = {}
    for event in events:
        counts[event["event"]] += 1
        if event["event"] in ("attempt", "stop"):
            last = event
    found: dict[str, Any] = {f"events/{name}": number for name, number in sorted(counts.items())}
    if last.get("event") == "stop":
        found["events/last_stop"] = redacted(str(last.get("reason", "")))
        found["events/exit_code"] = last.get("exit_code", CRASH)  # no code is no success
    return found


def _target(run: Path, config: SyncConfig) -> WandbRun:
    path = run / names.CONFIG
    if not config.run or not path.is_file():
        raise ConfigError(
            f"{config.run or 'no folder'!r} is not a run: {path} is missing; give the --run_dir of"
            " `fitb train`"
        )
    try:
        saved = yaml.safe_load(path.read_text())
        track = saved["track"]
        track |= {k: v for k in ("project", "entity") if (v := getattr(config, k)) is not None}
        run_id = wandb_id.read_id(run)
        if run_id is None:
            raise ConfigError(
                f"{run / names.WANDB_ID} is missing or holds no id; put back what `fitb train`"
                " wrote, or write an id of your own into it"
            )
        return target_of(run_id, run.resolve().name, saved)
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not the configuration of a run ({type(error).__name__}); restore it"
        ) from error


def _send(
    run: Path, target: WandbRun, records: list[dict[str, Any]], events: list[Any], wait_s: float
) -> str:
    """Send what the server lacks, then check its last step."""
    last = records[-1][STEP]
    with tempfile.TemporaryDirectory(prefix="fitb-sync-") as folder:
        with _wandb(target, "online", Path(folder), wait_s, events) as started:
            held, url = held_step(started), started.url
            missing = list(records_after(records, held))
            _log(started, missing)
            started.summary.update(summary_of(events))
        for check in range(_CHECKS if missing else 0):
            time.sleep(check * _CHECK_WAIT_S)
            with _wandb(target, "online", Path(folder), wait_s, events) as started:
                held = held_step(started)
            if held >= last:
                break
    if held < last:
        raise SystemFault(
            f"W&B has {redacted(url or target.run_id)} up to step {held}, expected {last}: it"
            " refused what was sent; check its limits and your permissions, and sync again"
        )
    sent = f"sent {len(missing)} of {len(records)} lines, up to step {last}"
    return f"{sent}: {redacted(url or target.run_id)}"


def _write(
    run: Path, target: WandbRun, records: list[dict[str, Any]], events: list[Any], wait_s: float
) -> str:
    """Write one segment of all attempts, replacing an earlier one.

    Raises: ConfigError if the folder holds anything else.
    """
    others = {path.name for path in (run / MERGED).glob("*")} - {"wandb"}
    if others:
        raise ConfigError(
            f"{run / MERGED} would be replaced, and holds what fitb did not write"
            f" ({', '.join(sorted(others))}); move it away"
        )
    with (
        fsio.folder_written_whole(run / MERGED) as scratch,
        _wandb(target, "offline", scratch, wait_s, events) as started,
    ):
        _log(started, records)
        started.summary.update(summary_of(events))
    (segment,) = (run / MERGED / "wandb").glob("offline-run-*")
    return f"wrote {len(records)} lines; upload them with `wandb sync {segment}`"


def _log(started: Any, records: Iterable[dict[str, Any]]) -> None:
    for record in records:
        started.log(record, step=record[STEP], commit=True)


@contextlib.contextmanager
def _wandb(
    target: WandbRun, mode: str, folder: Path, wait_s: float, events: list[Any]
) -> Iterator[Any]:
    """Start a W&B run and finish it as the last attempt ended, unless that still runs."""
    exit_code = summary_of(events).get("events/exit_code")
    try:
        begin_service()
        started = start(
            target,
            mode,
            folder,
            wait_s,
            symlink=False,
            x_disable_stats=True,  # this is not the machine of the run
            x_save_requirements=False,
            x_update_finish_state=exit_code is not None,
        )
        yield started
        started.finish(exit_code=exit_code or 0)
    except FitbError:
        raise
    except Exception as error:
        raise SystemFault(
            f"W&B did not take run {target.run_id} ({reason_of(error)}); check WANDB_API_KEY or"
            " `wandb login`, WANDB_BASE_URL and the network, or write a segment with --offline"
        ) from error
    finally:
        end_service()
