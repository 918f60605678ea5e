"""A run's metrics to Weights & Biases as one run, however many attempts it took and W&B missed.

Online it asks the server for the last step it holds and sends what follows, so it may be called
again at any time, also while the run is still being written. Offline it writes one segment that
`wandb sync` uploads; the segments of the attempts, one after another, would overwrite each other.
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
    Target,
    begin_service,
    end_service,
    held_step,
    reason_of,
    records_after,
    start,
    target_of,
)

MERGED = "wandb-merged"
_LOOKS, _LOOK_WAIT_S = 3, 2.0  # at what the server holds after an upload; it may be behind


@dataclass(frozen=True)
class SyncConfig:
    """Send a run's metrics to Weights & Biases as one run, whatever its attempts did.

    Args:
        run: run folder; may stand first without its flag.
        offline: write one segment under RUN/wandb-merged instead, for `wandb sync`.
        project: W&B project; null takes the run's own.
        entity: W&B team or user; null takes the run's own.
        wait_s: seconds that the upload may take.
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

    Raises: ConfigError for a folder that is no run, DataError for one without metrics, or with a
        damaged line: W&B takes no line behind later ones; SystemFault where W&B refuses or cannot
        be reached.
    """
    run = Path(config.run)
    target = _target(run, config)
    records = list(records_after(fsio.read_lines(run / names.METRICS, STEP), -1))
    if not records:
        raise DataError(
            f"{run}/metrics.jsonl holds no metrics; a run has some after {STEP} reached"
            " track.every_steps"
        )
    events = list(read_events(run))
    return (_write if config.offline else _send)(run, target, records, events, config.wait_s)


def summary_of(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return what a run's events come to: how many of each, and how the last attempt ended."""
    counts: Counter[str] = Counter()
    last: dict[str, Any] = {}
    for event in events:
        counts[event["event"]] += 1
        if event["event"] in ("attempt", "stop"):
            last = event
    found: dict[str, Any] = {f"events/{name}": number for name, number in sorted(counts.items())}
    if last.get("event") == "stop":
        found["events/last_stop"] = redacted(str(last.get("reason", "")))
        found["events/exit_code"] = last.get("exit_code", CRASH)  # without its word no success
    return found


def _target(run: Path, config: SyncConfig) -> Target:
    path = run / names.CONFIG
    if not config.run or not path.is_file():
        raise ConfigError(
            f"{config.run or 'no folder'!r} is not a run: {path} is missing; give the folder that"
            " `fitb train` had as --run_dir"
        )
    try:
        saved = yaml.safe_load(path.read_text())
        track = saved["track"]
        track |= {k: v for k in ("project", "entity") if (v := getattr(config, k)) is not None}
        name = run.resolve().name
        return target_of(_wandb_id(run), name, saved)
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not the configuration of a run ({type(error).__name__}); put it back"
        ) from error


def _wandb_id(run: Path) -> str:
    found = wandb_id.read_id(run)
    if found is None:
        raise ConfigError(
            f"{run / names.WANDB_ID} is missing or holds no id, so the W&B run cannot be told;"
            " `fitb train` writes it: put it back, or write an id of your own into it"
        )
    return found


def _send(
    run: Path, target: Target, records: list[dict[str, Any]], events: list[Any], wait_s: float
) -> str:
    """Send what the server lacks, and ask it again."""
    last = records[-1][STEP]
    with tempfile.TemporaryDirectory(prefix="fitb-sync-") as folder:
        with _wandb(target, "online", Path(folder), wait_s, events) as started:
            held, url = held_step(started), started.url
            missing = list(records_after(records, held))
            _log(started, missing)
            started.summary.update(summary_of(events))
        for look in range(_LOOKS if missing else 0):
            time.sleep(look * _LOOK_WAIT_S)
            with _wandb(target, "online", Path(folder), wait_s, events) as started:
                held = held_step(started)
            if held >= last:
                break
    if held < last:
        raise SystemFault(
            f"W&B holds {redacted(url or target.run_id)} up to step {held}, expected {last}: it"
            " refused what was sent; look at its limits and your rights there, and sync again"
        )
    sent = f"sent {len(missing)} of {len(records)} lines, up to step {last}"
    return f"{sent}: {redacted(url or target.run_id)}"


def _write(
    run: Path, target: Target, records: list[dict[str, Any]], events: list[Any], wait_s: float
) -> str:
    """Write one segment of all attempts, in place of one written before.

    Raises: ConfigError where something else is in that place.
    """
    others = {path.name for path in (run / MERGED).glob("*")} - {"wandb"}
    if others:
        raise ConfigError(
            f"{run / MERGED} holds what fitb did not write ({', '.join(sorted(others))}); move it"
            " away, it would be replaced"
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
    target: Target, mode: str, folder: Path, wait_s: float, events: list[Any]
) -> Iterator[Any]:
    """A started W&B run, finished as the run's last attempt was; one at work is left running."""
    exit_code = summary_of(events).get("events/exit_code")
    try:
        begin_service()
        started = start(
            target,
            mode,
            folder,
            wait_s,
            symlink=False,
            x_disable_stats=True,  # of this machine, which is not the run's
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
