"""slurm/site.env: what a site wants of every job, read by the fronts as the batch scripts read it.

The file is lines of bash. SBATCH_ variables act where a job is submitted, all others in the job,
whose script reads the file once more.
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
# What a front takes over; the rest of the file is for the job.
_OPTIONS = ("SBATCH_", "FITB_")
# What the jobs that a job submits are to have, too.
HANDED_ON = ("SLURM_CONF", *(f"SBATCH_{name}" for name in ("ACCOUNT", "PARTITION", "QOS",
             "CONSTRAINT", "RESERVATION")))  # fmt: skip


@dataclass(frozen=True)
class Site:
    """What a site's file says to a front.

    Args:
        setup: lines of a batch script.
        container: words before each command of a task; none without a container.
        python: the interpreter in the container.
    """

    setup: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    python: str = "python"

    def command(self) -> str | None:
        """Return the interpreter of the tasks as a shell has it; None is this one."""
        return shlex.join([*self.container, self.python]) if self.container else None


def site_file(env: Mapping[str, str], here: Path) -> Path | None:
    """Return the file of this site, absolute; None where there is none.

    Args:
        env: FITB_SITE names it, as the file itself does for the shell that reads it; /dev/null is
            no file.
        here: the folder from which jobs are submitted; then the checkout is looked at.
    Raises: ConfigError where FITB_SITE names none.
    """
    named = env.get("FITB_SITE")
    if named == os.devnull:
        return None
    if named:
        if not Path(named).exists():
            raise ConfigError(f"FITB_SITE={named!r} is not there; expected a file like {NAME}")
        return Path(named).absolute()
    places = (here / NAME, Path(fitb.__file__).resolve().parents[1] / NAME)
    return next((place.absolute() for place in places if place.is_file()), None)


def read_site(path: Path, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the file sets, as bash understands it.

    Raises: ConfigError where bash does not.
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
        raise ConfigError(f"{path}: bash ended with {done.returncode}: {said!r}; mend the file")
    pairs = (line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)
    return {name: value for name, value in pairs if env.get(name) != value}


def leave_job(env: MutableMapping[str, str]) -> None:
    """Remove what Slurm has told the job that this process may be part of.

    A job that it submits would take the size, the memory and the CPUs of that job for its own.
    """
    for name in [name for name in env if name.startswith("SLURM_") and name not in HANDED_ON]:
        del env[name]


def enter(env: MutableMapping[str, str], given: Mapping[str, object]) -> Site:
    """Take the site's file into the environment that sbatch is going to see.

    What the environment has already is left, and flags win over both: sbatch itself puts its
    environment before the lines of a script, where the fronts write their flags.

    Args:
        env: of this process.
        given: SBATCH_ name -> value of the flag of the same meaning, None where it was not given.
    Raises: ConfigError
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
