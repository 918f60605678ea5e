"""The run directory: one folder is the run, whoever launched it."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import logging
import os
import platform
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

import fitb
from fitb import fsio
from fitb.cluster.history import last_words
from fitb.config import Config
from fitb.config.yaml import changed_keys, to_yaml, with_algorithms_of
from fitb.errors import ConfigError, SystemFault
from fitb.train import attempt
from fitb.train.attempt import Replaced
from fitb.train.checkpoint import last_saved, on_all, on_main
from fitb.world import World, job_id

logger = logging.getLogger(__name__)
# What a run makes, replaces and removes in its folder; the first by renaming something over it.
_RENAMED_OVER = ("config.yaml", "provenance.json", "metrics.jsonl", "export")
_REPLACED = (*_RENAMED_OVER, "wandb_id", "checkpoints", "attempts", "rows")
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "pyarrow", "wandb")


class RunDir:
    """Paths and records of a run.

    Args:
        path: the folder.
        attempt: 1 for the first start.
        world: this process's place; only rank 0 writes.
    """

    def __init__(self, path: Path, attempt: int, world: World) -> None:
        self.path, self.attempt, self._world = path, attempt, world
        self.name = path.resolve().name
        self.checkpoints = path / "checkpoints"
        self.licence = self.checkpoints / f".{attempt:04d}"
        self.heartbeats = path / "attempts" / f"{attempt:04d}"
        self.export = path / "export"
        self.logs = path / "logs"
        self.metrics = path / "metrics.jsonl"

    def event(self, name: str, **details: Any) -> None:
        """Append to events.jsonl, on rank 0; where that cannot be, only the log knows.

        `age_s` is how long this process has existed.
        """
        if not self._world.is_main:
            return
        now = datetime.datetime.now(datetime.timezone.utc)
        about = {"attempt": self.attempt, "age_s": round(_age_s(), 2), **details}
        record = {"time": now.isoformat(timespec="milliseconds"), "event": name, **about}
        try:
            self.check_owned()
            fsio.append_line(self.path / "events.jsonl", record)
        except (Replaced, OSError, SystemFault) as error:
            logger.warning("not in events.jsonl: %s (%s)", record, error)

    def check_owned(self) -> None:
        """Raise Replaced if another attempt owns the run, SystemFault where nobody can tell."""
        attempt.check_owned(self.licence)

    def open_metrics(self) -> int:
        """Put a copy of metrics.jsonl in its place, whole lines alone, and open it for appending.

        An attempt that has been replaced holds the old file open: it writes to nowhere.

        Raises: Replaced if this attempt has been.
        """
        fsio.create(self.metrics)
        lines = self.metrics.read_bytes()
        whole = lines[: lines.rfind(b"\n") + 1]  # without what a kill tore
        attempt.write_fenced(self.licence, self.metrics, whole)
        return fsio.open_for_appending(self.metrics)

    def leave(self, code: int) -> None:
        """Give the run back, whatever the exit code; rank 0, as the last thing."""
        if self._world.is_main:
            attempt.leave(self.path, self.attempt)


def open_run(config: Config, world: World) -> tuple[RunDir, Config]:
    """Create the run directory or enter it again; all ranks call this.

    Until a first step was logged or saved the configuration may still change: what was refused
    can be mended and started again.

    Returns: the run, and the configuration that holds: with the algorithms that the run began with.
    Raises:
        ConfigError: with every key that differs from the run's own config.yaml and may not.
        RunTaken, Replaced: another job is writing this run.
    """
    path = Path(config.run_dir)

    def enter() -> tuple[int, Config]:
        _refuse_other(path)
        path.mkdir(parents=True, exist_ok=True)
        for folder in ("checkpoints", "logs"):
            (path / folder).mkdir(exist_ok=True)
        _begun(path, config)  # a start that is refused shuts nobody out
        events = path / "events.jsonl"
        earlier = [e for e in fsio.read_records(events, "event") if e["event"] == "attempt"]
        number = attempt.take(path, os.environ, first=1 + len(earlier))
        try:
            fsio.mend_tail(events)
            for file, event in last_words(path):
                fsio.append_line(events, event)
                file.unlink()
            began = _begun(path, config)  # asked again: whoever was shut out may have begun it
            if began is None:
                fence = path / "checkpoints" / f".{number:04d}"
                attempt.write_fenced(fence, path / "config.yaml", to_yaml(config))
        except BaseException:
            attempt.leave(path, number)
            raise
        return number, began or config

    number, config = on_main(enter, world)
    run = RunDir(path, number, world)
    hosts = on_all(socket.gethostname, world)
    run.event(
        "attempt",
        world_size=world.size,
        hosts=sorted(set(hosts)),
        job=job_id(os.environ),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )
    on_main(lambda: _add_provenance(path / "provenance.json", run.attempt, hosts, config), world)
    return run, config


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
    attempts = path / "attempts"
    names = os.listdir(attempts) if attempts.is_dir() else []
    if names and all(re.fullmatch(r"\d{4,}(\.ended)?", name) for name in names):
        return
    events = fsio.read_records(path / "events.jsonl", "event")
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
        return any(not name.startswith(attempt.CLAIM) for name in os.listdir(path))
    return os.path.lexists(path)


def _begun(path: Path, config: Config) -> Config | None:
    """Return the configuration, with its own algorithms, of a run that has logged or saved a step.

    Raises: ConfigError where that was under another configuration, or is beyond this fitb.
    """
    saved, logged = path / "config.yaml", path / "metrics.jsonl"
    begun = logged.exists() and logged.stat().st_size > 0
    begun = begun or any((path / "checkpoints").glob("step-*")) or last_saved(path) > 0
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


def _add_provenance(path: Path, attempt: int, hosts: list[str], config: Config) -> None:
    attempts: Any = []
    try:
        attempts = fsio.read_json(path)
    except FileNotFoundError:
        pass
    except ValueError as error:
        attempts = error
    if not isinstance(attempts, list):
        aside = fsio.set_aside(path)
        why = attempts if isinstance(attempts, ValueError) else f"{path} is no list"
        logger.warning("set aside as %s, and begun anew: %s", aside, why)
        attempts = []
    attempts.append({"attempt": attempt, "hosts": hosts, **describe_code(), "seed": config.seed})
    fsio.write_json(path, attempts)


@functools.cache
def describe_code() -> dict[str, Any]:
    """Commit, local changes and versions of what is running, as they were when it began."""
    import torch

    def git(*args: str) -> str | None:
        command = ["git", "-C", str(Path(fitb.__file__).parent), *args]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fitb": fitb.__version__,
        "commit": git("rev-parse", "HEAD"),
        "diff": git("diff", "HEAD"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "devices": devices,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
