"""The run folder as its attempts write it: entered once as its owner, then appended to."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fitb.base import fsio
from fitb.base.errors import ConfigError, SystemFault
from fitb.base.world import World
from fitb.config import Config
from fitb.config.yaml import changed_keys, to_yaml, with_algorithms_of
from fitb.rundir import names, ownership
from fitb.rundir.checkpoints import last_saved
from fitb.rundir.events import last_words, now
from fitb.rundir.ownership import Replaced

logger = logging.getLogger(__name__)
# What a run makes, replaces and removes in its folder; the first by renaming something over it.
_RENAMED_OVER = (names.CONFIG, names.PROVENANCE, names.METRICS, names.EXPORT)
_REPLACED = (*_RENAMED_OVER, names.WANDB_ID, names.CHECKPOINTS, names.ATTEMPTS)


class RunDir:
    """The run folder as one attempt writes it.

    Args:
        path: the folder.
        attempt: 1 for the first start.
        world: this process's place; only rank 0 writes.
    """

    def __init__(self, path: Path, attempt: int, world: World) -> None:
        self.path, self.attempt, self._world = path, attempt, world
        self.name = path.resolve().name
        self.checkpoints = path / names.CHECKPOINTS
        self.fence = names.fence(path, attempt)
        self.heartbeats = names.attempt(path, attempt)
        self.export = path / names.EXPORT
        self.logs = path / names.LOGS
        self.metrics = path / names.METRICS

    def event(self, name: str, **details: Any) -> None:
        """Append to events.jsonl, on rank 0; where that cannot be, only the log knows.

        `age_s` is how long this process has existed.
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
        """Raise Replaced if another attempt owns the run, SystemFault where nobody can tell."""
        ownership.check_owned(self.fence)

    def open_metrics(self) -> int:
        """Put a copy of metrics.jsonl in its place, whole lines alone, and open it for appending.

        An attempt that has been replaced holds the old file open: it writes to nowhere.

        Raises: Replaced if this attempt has been.
        """
        fsio.create(self.metrics)
        lines = self.metrics.read_bytes()
        whole = lines[: lines.rfind(b"\n") + 1]  # without what a kill tore
        ownership.write_fenced(self.fence, self.metrics, whole)
        return fsio.open_for_appending(self.metrics)

    def leave(self, code: int) -> None:
        """Give the run back, whatever the exit code; rank 0, as the last thing."""
        if self._world.is_main:
            ownership.release(self.path, self.attempt)


def enter(
    config: Config, env: Mapping[str, str], is_over: Callable[[str], bool]
) -> tuple[int, Config]:
    """Create the run folder or enter it again, as its owner; rank 0 calls this.

    Until a first step was logged or saved the configuration may still change: what was refused
    can be mended and started again.

    Args:
        env: of the job.
        is_over: as of `ownership.take`.
    Returns: the attempt, and the configuration that holds: with the algorithms that the run began
        with.
    Raises:
        ConfigError: with every key that differs from the run's own config.yaml and may not.
        RunTaken, Replaced: another job is writing this run.
    """
    path = Path(config.run_dir)
    _refuse_other(path)
    path.mkdir(parents=True, exist_ok=True)
    for folder in (names.CHECKPOINTS, names.LOGS):
        (path / folder).mkdir(exist_ok=True)
    _begun(path, config)  # a start that is refused shuts nobody out
    events = path / names.EVENTS
    earlier = [e for e in fsio.read_records(events, "event") if e["event"] == "attempt"]
    number = ownership.take(path, env, first=1 + len(earlier), is_over=is_over)
    try:
        fsio.mend_tail(events)
        for file, event in last_words(path):
            fsio.append_line(events, event)
            file.unlink()
        began = _begun(path, config)  # asked again: whoever was shut out may have begun it
        if began is None:
            fence = names.fence(path, number)
            ownership.write_fenced(fence, path / names.CONFIG, to_yaml(config))
    except BaseException:
        ownership.release(path, number)
        raise
    return number, began or config


def _age_s() -> float:
    """Seconds since this process started; psutil counts from the second of the boot."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _refuse_other(path: Path) -> None:
    """Refuse a folder that is no run and holds files of the names that a run replaces or removes.

    A link under a name that a run renames over would be gone, and what it leads to left behind.

    A run is told by `attempts/`, which every start makes before it writes anything else; one of
    before there was that, by the attempts in its events.

    Raises: ConfigError
    """
    for name in _RENAMED_OVER:
        if (path / name).is_symlink():
            raise ConfigError(
                f"{path / name} is a link, which a run would replace; remove it, and link all of"
                f" {path} where it is to lie elsewhere"
            )
    attempts = path / names.ATTEMPTS
    found = os.listdir(attempts) if attempts.is_dir() else []
    if found and all(re.fullmatch(r"\d{4,}(\.ended)?", name) for name in found):
        return
    events = fsio.read_records(path / names.EVENTS, "event")
    if any(event["event"] == "attempt" for event in events):
        return
    others = [name for name in _REPLACED if _holds(path / name)]
    if others:
        raise ConfigError(
            f"{path} is not the folder of a run, and holds {', '.join(others)}, which a run would"
            " replace; move that away, or choose another --run_dir"
        )


def _holds(path: Path) -> bool:
    """Whether a name stands for more than an empty folder; what a killed start left is nothing."""
    if path.is_dir():
        return any(not name.startswith(ownership.CLAIM) for name in os.listdir(path))
    return os.path.lexists(path)


def _begun(path: Path, config: Config) -> Config | None:
    """Return the configuration, with its own algorithms, of a run that has logged or saved a step.

    Raises: ConfigError where that was under another configuration, or is beyond this fitb.
    """
    saved, logged = path / names.CONFIG, path / names.METRICS
    begun = logged.exists() and logged.stat().st_size > 0
    begun = begun or any((path / names.CHECKPOINTS).glob("step-*")) or last_saved(path) > 0
    if not (begun and saved.exists()):
        return None
    old = _read_config(saved)
    config = with_algorithms_of(old, config)
    changed = changed_keys(old, config)
    if changed:
        raise ConfigError(
            f"{path} was begun under another configuration: {'; '.join(changed)}."
            " Give the old values back, or choose another --run_dir"
        )
    return config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        saved = yaml.safe_load(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        saved = error
    if not isinstance(saved, dict):
        raise ConfigError(
            f"{path} is not the configuration of a run ({type(saved).__name__}); put it back, or"
            " choose another --run_dir"
        )
    return saved
