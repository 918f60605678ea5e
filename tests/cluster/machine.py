"""What the machine must have for a cluster, and its commands, run and waited for."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

PROGRAMS = ["slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue"]
PROGRAMS += ["munged", "ip", "unshare"]


class ClusterUnavailable(Exception):
    """This machine cannot hold the cluster; the message says why."""


def why_not() -> str | None:
    """Return what this machine lacks, or None."""
    if os.geteuid() != 0:
        return "not root: network namespaces cannot be made"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge iproute2"
    return None


def run(
    *command: str,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command and return its standard output.

    Raises: ClusterUnavailable with the command and what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=60)
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ClusterUnavailable(f"{' '.join(command)}: exit {done.returncode}: {said}")
    return done.stdout


def wait_until(condition: object, timeout_s: float, what: str, poll_s: float = 0.2) -> None:
    """Poll `condition()` until it is true.

    Raises: TimeoutError naming `what`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(poll_s)


def open_lock(path: Path) -> IO[bytes]:
    """Open a lock in a folder that all users write to: no link is followed, nothing is cut off."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "r+b")


def start_munge() -> None:
    """Start munged with a key, where none is running; of several at once, one does."""
    with open_lock(Path("/tmp/fitb-munge.lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
            return
        key = Path("/etc/munge/munge.key")
        if not key.exists():
            key.write_bytes(os.urandom(1024))
            key.chmod(0o400)
            shutil.chown(key, "munge", "munge")
        for folder in ("/run/munge", "/var/lib/munge", "/var/log/munge"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.chown(folder, "munge", "munge")
        run("runuser", "-u", "munge", "--", "munged")
