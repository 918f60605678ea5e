"""slurm/site.env, the site's settings for every job, read as the batch scripts read it.

The file is sourced by bash. Its SBATCH_ variables act at submission, all others in the job, whose
script sources the file again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import fitb
from fitb.base.errors import ConfigError

NAME = "slurm/site.env"
READ_S = 60.0
# Variables that act at submission; the others act in the job.
_OPTIONS = ("SBATCH_", "FITB_")
# Variables that a job passes on to the jobs that it submits.
HANDED_ON = ("SLURM_CONF", *(f"SBATCH_{name}" for name in ("ACCOUNT", "PARTITION", "QOS",
             "CONSTRAINT", "RESERVATION")))  # fmt: skip


@dataclass(frozen=True)
class Site:
    """Settings of a site for a submission.

    Args:
        setup: lines of the batch script.
        container: command prefix of each task; empty without a container.
        python: Python interpreter in the container.
    """

    setup: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    python: str = "python"

    def command(self) -> str | None:
        """Return the shell command of the tasks' interpreter; None is this interpreter."""
        return shlex.join([*self.container, self.python]) if self.container else None


def site_file(env: Mapping[str, str], here: Path) -> Path | None:
    """Return the absolute path of the site file; None if there is none.

    Args:
        env: environment; FITB_SITE names the file, and /dev/null means none.
        here: folder to look in first; then comes the checkout.
    Raises: ConfigError if the file that FITB_SITE names does not exist.
    """
    named = env.get("FITB_SITE")
    if named == os.devnull:
        return None
    if named:
        if not Path(named).exists():
            raise ConfigError(f"FITB_SITE={named!r} does not exist; expected a file like {NAME}")
        return Path(named).absolute()
    places = (here / NAME, Path(fitb.__file__).resolve().parents[1] / NAME)
    return next((place.absolute() for place in places if place.is_file()), None)


def read_site(path: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Source the file in bash and return the variables that it sets or changes.

    Raises: ConfigError if bash fails.
    """
    script = 'bash -n "$1" || exit; . "$1" >&2; env -0'
    command = ["bash", "-c", script, "bash", str(path)]
    try:
        done = subprocess.run(
            command, env=dict(env), capture_output=True, text=True, timeout=READ_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{path} cannot be read by bash: {error}") from error
    if done.returncode:
        said = done.stderr.strip()[-300:]
        raise ConfigError(f"{path}: bash ended with {done.returncode}: {said!r}; fix the file")
    pairs = (line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)
    return {name: value for name, value in pairs if env.get(name) != value}


def leave_job(env: MutableMapping[str, str]) -> None:
    """Remove the SLURM_ variables of the job that this process may run in.

    A job submitted from here would otherwise inherit its size, memory and CPUs.
    """
    for name in [name for name in env if name.startswith("SLURM_") and name not in HANDED_ON]:
        del env[name]


def enter(env: MutableMapping[str, str], given: Mapping[str, object]) -> Site:
    """Load the site file into the environment that sbatch will see.

    Variables that are already set take precedence, and flags over both: sbatch prefers its
    environment to the #SBATCH lines that flags become, so variables of given flags are removed.

    Args:
        env: environment of this process, changed in place.
        given: SBATCH_ name -> value of the flag with the same meaning; None if not given.
    Raises: ConfigError if the file is missing or bash fails.
    """
    path = site_file(env, Path.cwd())
    if path:
        for name, value in read_site(path, env).items():
            if name.startswith(_OPTIONS):
                env.setdefault(name, value)
        env["FITB_SITE"] = str(path)
    for name, flag in given.items():
        if flag is not None:
            env.pop(name, None)
    image = env.get("FITB_APPTAINER")
    container: tuple[str, ...] = ()
    if image:
        options = shlex.split(env.get("FITB_APPTAINER_OPTIONS", "--nv"))
        container = ("apptainer", "exec", *options, image)
    setup = (f". {shlex.quote(str(path))}",) if path else ()
    return Site(setup, container, env.get("FITB_APPTAINER_PYTHON", "python"))
