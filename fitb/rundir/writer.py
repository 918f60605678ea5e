"""Writing the run folder: enter it as its owner, then append events and metrics."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fitb.base import fsio
from fitb.base.errors import ConfigError, SystemFault
from fitb.base.world import World
from fitb.config import Config
from fitb.config.yaml import changed_keys, to_yaml, with_algorithms_of
from fitb.rundir import names, ownership
from fitb.rundir.checkpoints import committed, last_saved, step_of
from fitb.rundir.clock import Clock
from fitb.rundir.events import hang_reports, now, num_attempts
from fitb.rundir.metrics import tail_records
from fitb.rundir.ownership import Replaced

logger = logging.getLogger(__name__)
# What a run replaces or removes in its folder; the first ones by renaming a file over them.
_RENAMED_OVER = (names.CONFIG, names.PROVENANCE, names.METRICS, names.EXPORT)
_REPLACED = (*_RENAMED_OVER, names.WANDB_ID, names.CHECKPOINTS, names.ATTEMPTS)


class RunDir:
    """The run folder of one attempt.

    Args:
        path: run folder.
        attempt: number of the attempt, from 1.
        world: rank and world size of this process; only rank 0 writes.
        done: steps that earlier attempts have done, saved or not.
    """

    def __init__(self, path: Path, attempt: int, world: World, done: int = 0) -> None:
        self.path, self.attempt, self._world = path, attempt, world
        self.clock = Clock(_age_s(), done)
        self.name = path.resolve().name
        self.checkpoints = path / names.CHECKPOINTS
        self.fence = names.fence(path, attempt)
        self.heartbeats = names.attempt(path, attempt)
        self.export = path / names.EXPORT
        self.logs = path / names.LOGS
        self.metrics = path / names.METRICS

    def event(self, name: str, **details: Any) -> None:
        """Append an event to events.jsonl, on rank 0; if that fails, log a warning instead.

        Args:
            name: event name.
            details: further fields; `age_s`, the age of this process, is added.
        """
        if not self._world.is_main:
            return
        about = {"attempt": self.attempt, "age_s": round(_age_s(), 2), **details}
        record = {"time": now(), "event": name, **about}
        try:
            self.check_owned()
            fsio.append_line(self.path / names.EVENTS, record)
        except (Replaced, OSError, SystemFault) as error:
            logger.warning("not in events.jsonl: %s (%s)", record, error)

    def check_owned(self) -> None:
        """Raise Replaced if another attempt owns the run, SystemFault if the filesystem fails."""
        ownership.check_owned(self.fence)

    def open_metrics(self) -> int:
        """Replace metrics.jsonl by a copy of its complete lines and open it for appending.

        A replaced attempt still has the old, unlinked file open, so what it appends is lost.

        Returns: file descriptor.
        Raises: Replaced if this attempt has been replaced.
        """
        fsio.create(self.metrics)
        lines = self.metrics.read_bytes()
        whole = lines[: lines.rfind(b"\n") + 1]  # without a line that a kill left incomplete
        ownership.write_fenced(self.fence, self.metrics, whole)
        return fsio.open_for_appending(self.metrics)

    def close(self, code: int) -> None:
        """Release the ownership of the run, whatever the exit code; nothing is written after."""
        if self._world.is_main:
            ownership.release(self.path, self.attempt)


def enter(
    config: Config, env: Mapping[str, str], is_over: Callable[[str], bool]
) -> tuple[int, Config]:
    """Create or re-enter a run folder as its owner; called on rank 0.

    The configuration may change until a first step has been logged or saved, and the number of
    steps until the learning rate has begun to decay.

    Args:
        config: run configuration.
        env: environment of the job.
        is_over: as for `ownership.take`.
    Returns: number of the attempt, and the configuration with the algorithm versions that the run
        started with.
    Raises:
        ConfigError: names every key that differs from the run's config.yaml and must not.
        RunTaken, Replaced: another job is writing this run.
    """
    path = Path(config.run_dir)
    _refuse_other(path)
    path.mkdir(parents=True, exist_ok=True)
    for folder in (names.CHECKPOINTS, names.LOGS):
        (path / folder).mkdir(exist_ok=True)
    _begun(path, config)  # before taking over: a refused start must not replace the owner
    number = ownership.take(path, env, first=1 + num_attempts(path), is_over=is_over)
    try:
        events = path / names.EVENTS
        fsio.mend_tail(events)
        for file, event in hang_reports(path):
            fsio.append_line(events, event)
            file.unlink()
        began = _begun(path, config)  # again: the replaced owner may have logged its first step
        moved = began is not None and _read_config(path / names.CONFIG).get("steps") != config.steps
        if began is None or moved:
            fence = names.fence(path, number)
            ownership.write_fenced(fence, path / names.CONFIG, to_yaml(began or config))
    except BaseException:
        ownership.release(path, number)
        raise
    return number, began or config


def _age_s() -> float:
    """Return seconds since this process started; psutil would round the boot time to a second."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _refuse_other(path: Path) -> None:
    """Raise ConfigError for a folder that is not a run and has files that a run would replace."""
    for name in _RENAMED_OVER:
        if (path / name).is_symlink():
            raise ConfigError(
                f"{path / name} is a link, which a run would replace; remove it, and to store the"
                f" run elsewhere make {path} itself a link"
            )
    attempts = path / names.ATTEMPTS  # which every start creates first
    found = os.listdir(attempts) if attempts.is_dir() else []
    if found and all(re.fullmatch(r"\d{4,}(\.ended)?", name) for name in found):
        return
    if num_attempts(path):  # an old run
        return
    others = [name for name in _REPLACED if _holds(path / name)]
    if others:
        raise ConfigError(
            f"{path} is not the folder of a run, and holds {', '.join(others)}, which a run would"
            " replace; move that away, or choose another --run_dir"
        )


def _holds(path: Path) -> bool:
    """Return whether a path exists and is no empty folder; claims of killed starts do not count."""
    if path.is_dir():
        return any(not name.startswith(ownership.CLAIM) for name in os.listdir(path))
    return os.path.lexists(path)


def recorded(path: Path) -> dict[str, Any] | None:
    """Return the configuration that a run has recorded; None before its first step.

    Raises: ConfigError if it is damaged.
    """
    saved, logged = path / names.CONFIG, path / names.METRICS
    begun = logged.exists() and logged.stat().st_size > 0
    begun = begun or any((path / names.CHECKPOINTS).glob("step-*")) or last_saved(path) > 0
    return _read_config(saved) if begun and saved.exists() else None


def _begun(path: Path, config: Config) -> Config | None:
    """Return the configuration with the run's algorithm versions; None before a first step."""
    saved, old = path / names.CONFIG, recorded(path)
    if old is None:
        return None
    config = with_algorithms_of(old, config)
    if changed := changed_keys(old, config, "steps"):
        raise ConfigError(
            f"{path} was begun under another configuration: {'; '.join(changed)}."
            f" Restore the old values, as --config {saved} does if a preset has changed, or"
            " choose another --run_dir"
        )
    _check_end(path, old.get("steps", Config.steps), config)
    return config


def _check_end(path: Path, steps: int, config: Config) -> None:
    """Raise ConfigError if the end of a run is moved after its learning rate depended on it."""
    free = min(replace(config, steps=steps).decay_begins, config.decay_begins)
    saved = [step_of(each) for each in committed(path / names.CHECKPOINTS)]
    logged = [record[names.STEP] for record in tail_records(path)[-1:]]  # and stays in the log
    done = max([*saved, *logged], default=0)
    if steps == config.steps or done <= free:
        return
    before = max((step for step in saved if step <= free), default=None)
    where = names.checkpoint(path, before) if before is not None else config.branch_from
    why = f"its learning rate depends on the end since step {free}, and"
    if config.steps < done and free == config.steps:
        why = "behind it"
    branch = f", or branch from {where} into another --run_dir: --branch_from {where}"
    raise ConfigError(
        f"{path} was begun with steps={steps} and cannot end at steps={config.steps}: {why} step"
        f" {done} is done; restore --steps {steps}"
        f"{branch if where else ', or begin another --run_dir'}"
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        saved = yaml.safe_load(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        saved = error
    if not isinstance(saved, dict):
        raise ConfigError(
            f"{path} is not the configuration of a run ({type(saved).__name__}); restore it, or"
            " choose another --run_dir"
        )
    return saved
