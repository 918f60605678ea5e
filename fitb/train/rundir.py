"""The run directory: one folder is the run, whoever launched it."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import logging
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import yaml

import fitb
from fitb import fsio
from fitb.config import Config
from fitb.config_io import changed_keys, to_yaml
from fitb.errors import ConfigError
from fitb.train.checkpoint import on_all, on_main
from fitb.world import World

logger = logging.getLogger(__name__)
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
        self.export = path / "export"
        self.metrics = path / "metrics.jsonl"

    def event(self, name: str, **details: Any) -> None:
        """Append to events.jsonl, on rank 0."""
        if self._world.is_main:
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
            record = {"time": now, "event": name, "attempt": self.attempt, **details}
            fsio.append_line(self.path / "events.jsonl", record)


def open_run(config: Config, world: World) -> RunDir:
    """Create the run directory or enter it again; all ranks call this.

    Until a first step was logged or saved the configuration may still change: what was refused
    can be mended and started again.

    Raises: ConfigError with every key that differs from the run's own config.yaml and may not.
    """
    path = Path(config.run_dir)

    def enter() -> int:
        path.mkdir(parents=True, exist_ok=True)
        for folder in ("checkpoints", "logs"):
            (path / folder).mkdir(exist_ok=True)
        saved = path / "config.yaml"
        begun = (path / "metrics.jsonl").exists() or any((path / "checkpoints").iterdir())
        if begun and saved.exists():
            changed = changed_keys(_read_config(saved), config)
            if changed:
                raise ConfigError(
                    f"{path} was begun under another configuration: {'; '.join(changed)}."
                    " Give the old values back, or choose another --run_dir"
                )
        else:
            fsio.write_atomic(saved, to_yaml(config))
        events = path / "events.jsonl"
        fsio.mend_tail(events)
        return 1 + len([e for e in fsio.read_lines(events) if e["event"] == "attempt"])

    run = RunDir(path, on_main(enter, world), world)
    hosts = on_all(socket.gethostname, world)
    run.event("attempt", world_size=world.size, hosts=sorted(set(hosts)))
    if world.is_main:
        _add_provenance(path / "provenance.json", run.attempt, hosts, config)
    return run


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
    attempts = fsio.read_json(path) if path.exists() else []
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
