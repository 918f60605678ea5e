"""Locate and copy the batch scripts: beside the package in a checkout, inside it if installed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import fitb
from fitb.base.errors import ConfigError


@dataclass(frozen=True)
class ScriptsConfig:
    """Say where the batch scripts lie, or copy them.

    Args:
        out: folder to copy them into, so that a site can change them.
    """

    out: str = ""


def find_script(name: str = "distill.sh") -> Path | None:
    """Return a file of slurm/ from the working directory or the package; None if there is none."""
    package = Path(fitb.__file__).parent
    places = (Path("slurm"), package.parent / "slurm", package / "slurm")
    return next((place / name for place in places if (place / name).is_file()), None)


def scripts(config: ScriptsConfig) -> Path:
    """Return the folder of the batch scripts, or of their copies if `out` is set.

    Raises: ConfigError if there are none, or a copy would overwrite a different file.
    """
    script = find_script()
    if script is None:
        raise ConfigError("slurm/distill.sh is neither here nor in the package; reinstall fitb")
    source = script.parent
    if not config.out:
        return source.resolve()
    out = Path(config.out)
    found = [*sorted(source.glob("*.sh")), source / "site.example.env"]
    for script in found:
        there = out / script.name
        if there.exists() and there.read_bytes() != script.read_bytes():
            raise ConfigError(f"{there} differs from ours; move it away, or use another folder")
    out.mkdir(parents=True, exist_ok=True)
    for script in found:
        if not (out / script.name).exists():
            shutil.copyfile(script, out / script.name)
            (out / script.name).chmod(0o755 if script.suffix == ".sh" else 0o644)
    return out
