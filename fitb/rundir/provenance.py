"""provenance.json: code, packages and hosts of each attempt."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import platform
from pathlib import Path
from typing import Any

import fitb
from fitb.base import fsio
from fitb.base.git import git
from fitb.rundir import names

logger = logging.getLogger(__name__)
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "pyarrow", "wandb")


def add_provenance(run: Path, entry: dict[str, Any]) -> None:
    """Append an entry; a damaged file is renamed to *.bad and a new one started."""
    path = run / names.PROVENANCE
    attempts: list[Any] = []
    try:
        found = fsio.read_json(path)
        if not isinstance(found, list):
            raise ValueError(f"{path} is no list")
        attempts = found
    except FileNotFoundError:
        pass
    except ValueError as error:
        logger.warning("renamed to %s, and started anew: %s", fsio.set_aside(path), error)
    fsio.write_json(path, [*attempts, entry])


def newest_code(run: Path) -> dict[str, Any] | None:
    """Return the entry of the newest attempt; None if there is none."""
    try:
        entry = fsio.read_json(run / names.PROVENANCE)[-1]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return entry if isinstance(entry, dict) else None


@functools.cache
def describe_code() -> dict[str, Any]:
    """Return commit, local changes and versions of the running code, as of process start."""
    import torch

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
