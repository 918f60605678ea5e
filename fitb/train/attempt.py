"""Who may write into a run: one attempt at a time, and a newer one shuts an older one out.

An attempt owns two things. `attempts/0003/` says who it is, and holds a heartbeat of each rank;
its rename to `0003.ended` can succeed once, so of two that take a run over one does. The folder
`checkpoints/.0003/` is its licence: everything that it commits is written there and leaves it by a
rename. Taking over deletes that folder, so an attempt that was given up for dead, and is not, finds
nothing to rename, whatever it had begun.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from fitb import fsio
from fitb.cluster import slurm
from fitb.errors import SystemFault, TrainingError

HEARTBEAT_S = 10.0
SILENT_S = 3 * HEARTBEAT_S  # without a heartbeat: dead
_POLL_S = 0.5
_ENDED = ".ended"


class Replaced(TrainingError):
    """Another attempt has the run; what this one has not committed is not wanted."""


class RunTaken(TrainingError):
    """The run directory belongs to a job that lives."""


@dataclass(frozen=True)
class Owner:
    """Who runs an attempt: the process of rank 0.

    Args:
        attempt: its number, from 1.
        job: of Slurm; empty elsewhere.
        restart: how often Slurm has requeued that job.
        host: its name.
        machine: the boot and the process numbers that `pid` belongs to.
        pid: of rank 0.
        started: when that process started, in ticks since the boot.
        cluster: whose number `job` is; there may be several with one filesystem.
    """

    attempt: int
    job: str
    restart: int
    host: str
    machine: str
    pid: int
    started: float
    cluster: str

    @classmethod
    def me(cls, attempt: int, env: Mapping[str, str]) -> Owner:
        return cls(
            attempt,
            env.get("SLURM_JOB_ID", ""),
            int(env.get("SLURM_RESTART_COUNT", "0")),
            socket.gethostname(),
            _machine(),
            os.getpid(),
            _started(os.getpid()),
            env.get("SLURM_CLUSTER_NAME", ""),
        )


def take(run: Path, env: Mapping[str, str], first: int = 1) -> int:
    """Make this process the owner of a run, shutting out whoever had it; return the attempt.

    Args:
        run: the run directory.
        env: of a Slurm job, or of none.
        first: least number to take, for a run that older attempts left no folder of.
    Raises:
        RunTaken: an attempt of another job lives, or two took over at the same moment.
        SystemFault: what an earlier attempt was writing cannot be removed.
    """
    attempts, licences = run / "attempts", run / "checkpoints"
    attempts.mkdir(exist_ok=True)
    licences.mkdir(exist_ok=True)
    for folder in sorted(attempts.glob("[0-9]*")):
        if folder.suffix == _ENDED:
            continue
        reason = _lives(folder, env)
        if reason:
            raise RunTaken(
                f"{run} belongs to attempt {int(folder.name)}, which lives: {reason}. One job at a"
                " time can write a run; wait for it or end it, or choose another --run_dir"
            )
        try:
            folder.rename(folder.with_name(folder.name + _ENDED))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise RunTaken(f"{run} is being taken over by another job at this moment") from None
    for licence in licences.glob(".[0-9]*"):
        fsio.put_back(run / "export", licence)
        _remove(licence)
    numbers = [int(folder.name.removesuffix(_ENDED)) for folder in attempts.glob("[0-9]*")]
    number = max([first, *(n + 1 for n in numbers)])
    try:
        (attempts / f"{number:04d}").mkdir()
    except FileExistsError:
        raise RunTaken(f"{run} is being taken over by another job at this moment") from None
    fsio.write_json(attempts / f"{number:04d}" / "owner.json", asdict(Owner.me(number, env)))
    (licences / f".{number:04d}").mkdir()
    return number


def leave(run: Path, attempt: int) -> None:
    """Give a run back, so that the next attempt need not ask whether this one lives."""
    folder, licence = run / "attempts" / f"{attempt:04d}", run / "checkpoints" / f".{attempt:04d}"
    fsio.put_back(run / "export", licence)
    shutil.rmtree(licence, ignore_errors=True)
    try:
        folder.rename(folder.with_name(folder.name + _ENDED))
    except OSError:
        return  # it was taken over


def beat(folder: Path, rank: int, step: int) -> None:
    """Leave a sign of life of a rank in the folder of its attempt; where that fails, none."""
    sign = {"time": time.time(), "step": step, "host": socket.gethostname(), "pid": os.getpid()}
    try:
        (folder / f"rank-{rank:05d}.json").write_text(json.dumps(sign) + "\n")
    except OSError:
        return


def _lives(folder: Path, env: Mapping[str, str]) -> str | None:
    """Say why an attempt is taken to live, or return None.

    Slurm knows best: what it has requeued is over. On this very machine the process is looked for.
    Anywhere else the heartbeats are watched, against no clock but this one.
    """
    owner = _owner_of(folder)
    me = Owner.me(0, env)
    known = bool(owner and owner.job and owner.cluster == me.cluster)
    if owner and known and owner.job == me.job and owner.restart < me.restart:
        return None
    if owner and owner.machine and (owner.machine, owner.host) == (me.machine, me.host):
        alive = owner.pid != me.pid and _runs(owner)
        return (
            f"process {owner.pid} on {owner.host} of job {owner.job or 'none'}" if alive else None
        )
    if owner and known and owner.job != me.job:
        try:
            state = slurm.job_state(owner.job)
        except SystemFault:
            state = "RUNNING"
        if state == "PENDING" or (state in slurm.ENDED and state != slurm.FORGOTTEN):
            return None
    began, signs = time.monotonic(), _signs(folder)
    while time.monotonic() - began < SILENT_S:
        if _signs(folder) != signs:
            where = f"job {owner.job or 'none'} on {owner.host}" if owner else "a job"
            return f"{where} gave a sign of life just now"
        time.sleep(_POLL_S)
    return None


def _owner_of(folder: Path) -> Owner | None:
    """Who an attempt belongs to; None where its first second is not over, or was its last."""
    try:
        return Owner(**fsio.read_json(folder / "owner.json"))
    except (OSError, ValueError, TypeError):
        return None


def _signs(folder: Path) -> dict[str, str]:
    """The heartbeats, read: what a filesystem remembers of a file may be older than the file."""
    signs = {}
    for path in folder.glob("rank-*.json"):
        try:
            signs[path.name] = path.read_text()
        except OSError:
            continue
    return signs


def _runs(owner: Owner) -> bool:
    try:
        process = psutil.Process(owner.pid)
        same = _started(owner.pid) == owner.started
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _started(pid: int) -> float:
    """When a process started; in ticks since the boot, which no clock changes, where Linux tells.

    Raises: psutil.NoSuchProcess
    """
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return float(psutil.Process(pid).create_time())


def _machine() -> str:
    """What tells two sets of process numbers apart: the boot and the namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _remove(licence: Path) -> None:
    """Delete a licence whole, against a process that may still be writing into it.

    Raises: SystemFault where it does not go away.
    """
    deadline = time.monotonic() + SILENT_S
    while licence.exists():
        shutil.rmtree(licence, ignore_errors=True)
        if time.monotonic() > deadline:
            raise SystemFault(
                f"{licence} of an earlier attempt cannot be removed; expected to own it. Remove it"
                " by hand, and start again"
            )
