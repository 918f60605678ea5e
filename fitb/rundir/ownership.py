"""Single-writer ownership with a fencing token: only the newest attempt of a run can commit.

1. Claim: an attempt renames a folder with its owner.json and its fencing token to `attempts/0003/`,
   which fails if that number is taken.
2. Revoke: it removes the token of every older attempt, or the fence that the token has become.
3. Issue: it renames its own token to `checkpoints/.0003/`, its fence. Everything that it commits is
   written into the fence and renamed out of it.

There are never two fences, and an attempt that was wrongly presumed dead finds nothing to rename.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fitb.base import fsio
from fitb.base.errors import ConfigError, FitbError, SystemFault, TrainingError
from fitb.base.world import job_id, starts_of
from fitb.rundir import names

HEARTBEAT_S = 10.0
SILENT_S = 3 * HEARTBEAT_S  # without a heartbeat: presumed dead
_POLL_S = 0.5
_TOKEN, _ENDED, _OWNER = "token", "ended", "owner.json"  # in the folder of an attempt
CLAIM = ".claim-"  # prefix in checkpoints/ of the scratch folder that becomes attempts/NNNN
_ATTEMPT, _FENCE = r"(\d+)(?:\.ended)?", r"\.(\d+)"  # .ended: see has_ended
_AT_ONCE = "{} is being taken over by another job right now; only one job at a time can write a run"
_LINKED = (
    "{0}/checkpoints is on another filesystem than {0}, and checkpoints are renamed between the"
    " two; expected one filesystem. Move it back, or move all of {0} and make that a link"
)


class Replaced(TrainingError):
    """Another attempt owns the run; whatever this one has not committed is discarded."""


class RunTaken(TrainingError):
    """The run is owned by a live job."""


@dataclass(frozen=True)
class Owner:
    """Owner of an attempt: the process of rank 0.

    Args:
        attempt: number of the attempt, from 1.
        job: Slurm job id; empty without Slurm.
        restart: how often Slurm has requeued that job.
        host: host name.
        machine: boot id and PID namespace, in which `pid` is valid.
        pid: process id of rank 0.
        started: start time of that process, in clock ticks since boot.
        cluster: name of the Slurm cluster; several may share a filesystem.
        nonce: distinguishes two claims of the same number; empty in older runs.
        start: how often the batch script has started the tasks again since that requeue.
    """

    attempt: int
    job: str
    restart: int
    host: str
    machine: str
    pid: int
    started: float
    cluster: str
    nonce: str = ""
    start: int = 0

    @classmethod
    def me(cls, attempt: int, env: Mapping[str, str]) -> Owner:
        restart, start = starts_of(env)
        return cls(
            attempt,
            job_id(env),
            restart,
            socket.gethostname(),
            _machine(),
            os.getpid(),
            _started(os.getpid()),
            env.get("SLURM_CLUSTER_NAME", ""),
            secrets.token_hex(8),
            start,
        )

    @property
    def starts(self) -> tuple[int, int]:
        """Return what world.starts_of returns for this owner."""
        return self.restart, self.start


def take(
    run: Path,
    env: Mapping[str, str],
    first: int = 1,
    is_over: Callable[[str], bool] = lambda job: False,
) -> int:
    """Make this process the owner of a run, revoke earlier owners, and return the attempt number.

    Args:
        run: run folder.
        env: environment of the process, of a Slurm job or not.
        first: smallest number to claim, for a run whose older attempts have left no folders.
        is_over: whether the scheduler knows that a job of this cluster has ended or is pending.
    Raises:
        RunTaken: the owner is alive, or another process is taking over at the same time.
        Replaced: a later attempt has taken over meanwhile.
        SystemFault: the fence of an earlier attempt cannot be removed.
        ConfigError: checkpoints/ is on another filesystem.
    """
    attempts, checkpoints = run / names.ATTEMPTS, run / names.CHECKPOINTS
    attempts.mkdir(exist_ok=True)
    checkpoints.mkdir(exist_ok=True)
    fenced = _numbers(checkpoints, _FENCE)
    known = fenced | _numbers(attempts, _ATTEMPT)
    unended = {number for number in known if not has_ended(run, number)}
    for number in sorted(unended):
        reason = _why_alive(names.attempt(run, number), env, is_over)
        if reason:
            raise RunTaken(
                f"{run} is owned by attempt {number}, which is alive: {reason}. Only one job at a"
                " time can write a run; wait for it or end it, or choose another --run_dir"
            )
    mine = max([first, *(number + 1 for number in known)])
    _claim(run, Owner.me(mine, env))
    try:
        if _numbers(attempts, _ATTEMPT) - known != {mine}:  # others, whose liveness is unchecked
            raise RunTaken(_AT_ONCE.format(run))
        for number in sorted(unended | fenced):
            _revoke(run, number, SILENT_S)
        _issue(run, mine)
    except (FitbError, OSError):
        release(run, mine)
        raise
    return mine


def has_ended(run: Path, number: int) -> bool:
    """Return whether an attempt was released by itself or revoked by a later one.

    Earlier versions of fitb renamed its folder to `NNNN.ended`.
    """
    folder = names.attempt(run, number)
    if folder.exists():
        return (folder / _ENDED).exists()
    return folder.with_name(f"{folder.name}.ended").exists()


def current_owner(run: Path) -> Owner | None:
    """Return the owner of the newest attempt that has not ended; None if there is none."""
    attempts = run / names.ATTEMPTS
    numbers = _numbers(attempts, r"(\d+)") if attempts.is_dir() else set()
    newest = max((number for number in numbers if not has_ended(run, number)), default=None)
    return None if newest is None else _owner_of(names.attempt(run, newest))


def release(run: Path, attempt: int) -> None:
    """Release the ownership of an attempt, so that the next one need not check its liveness."""
    try:
        _revoke(run, attempt, 0.0)
    except (FitbError, OSError):
        return  # the next attempt checks


def check_owned(fence: Path) -> None:
    """Raise unless the attempt with this fence still owns its run.

    A missing fence alone proves nothing: the filesystem may fail or answer from a stale cache.

    Raises:
        Replaced: the fence is gone and a later attempt exists, or this one has ended.
        SystemFault: the fence is gone and neither is true, or the filesystem fails.
    """
    if _exists(fence):
        return
    run, number = fence.parent.parent, int(fence.name[1:])
    why = "there is no later attempt"
    try:
        newest = max(_numbers(run / names.ATTEMPTS, _ATTEMPT), default=0)
        if newest > number or has_ended(run, number):
            raise Replaced(
                f"attempt {number} of {run} has been replaced by a later one; the newest is"
                f" {newest}, and this one stops"
            )
    except OSError as error:
        why = f"the later attempts cannot be listed: {error}"
    raise SystemFault(
        f"{fence}, the fence of this attempt, is gone as after a take-over, but {why}. Start again;"
        " if it happens again, check the filesystem"
    )


def write_fenced(fence: Path, path: Path, content: str | bytes) -> None:
    """Write a file atomically, as `fsio.write_atomic` does, but only as the owner of the run.

    Raises: Replaced if another attempt owns the run; the file is then unchanged.
    """
    part = fence / path.name
    try:
        fsio.write_atomic(part, content)
        os.replace(part, path)
    except OSError:
        check_owned(fence)
        raise
    fsio.fsync_dir(path.parent)


def heartbeat(
    folder: Path, rank: int, step: int, seconds: Mapping[str, float] | None = None
) -> None:
    """Write the heartbeat of a rank into the folder of its attempt; ignore failures.

    Args:
        folder: folder of the attempt.
        rank: rank of this process.
        step: last step that it has done; 0 before the first.
        seconds: what the seconds of this process went to.
    """
    record = {"time": time.time(), "step": step, "host": socket.gethostname(), "pid": os.getpid()}
    record["seconds"] = {kind: round(spent, 3) for kind, spent in (seconds or {}).items()}
    path = folder / names.heartbeat(rank)
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(record) + "\n")
        part.replace(path)  # the next attempt reads the last one
    except OSError:
        return


def _why_alive(folder: Path, env: Mapping[str, str], is_over: Callable[[str], bool]) -> str | None:
    """Return why an attempt is alive, by Slurm, its process or its heartbeats; None if dead."""
    owner = _owner_of(folder)
    me = Owner.me(0, env)
    known = bool(owner and owner.job and owner.cluster == me.cluster)
    if owner and known and owner.job == me.job and owner.starts < me.starts:
        return None
    if owner and owner.machine and (owner.machine, owner.host) == (me.machine, me.host):
        alive = owner.pid != me.pid and _runs(owner)
        return (
            f"process {owner.pid} on {owner.host} of job {owner.job or 'none'}" if alive else None
        )
    if owner and known and owner.job != me.job and is_over(owner.job):
        return None
    began, before = time.monotonic(), _heartbeats(folder)  # only the clock of this host counts
    while time.monotonic() - began < SILENT_S:
        if _heartbeats(folder) != before:
            where = f"job {owner.job or 'none'} on {owner.host}" if owner else "a job"
            return f"{where} wrote a heartbeat just now"
        time.sleep(_POLL_S)
    return None


def _owner_of(folder: Path) -> Owner | None:
    """Return the owner of an attempt; None if it cannot be read."""
    try:
        found = fsio.read_json(folder / _OWNER)
        keys = [field.name for field in fields(Owner)]
        return Owner(**{key: found[key] for key in keys if key in found})
    except (OSError, ValueError, TypeError):
        return None


def _heartbeats(folder: Path) -> dict[str, str]:
    """Return the content of each heartbeat; modification times may be cached by the filesystem."""
    found = {}
    for path in folder.glob("rank-*.json"):
        try:
            found[path.name] = path.read_text()
        except OSError:
            continue
    return found


def _runs(owner: Owner) -> bool:
    import psutil  # here, as the doctor starts where it is missing

    try:
        process = psutil.Process(owner.pid)
        same = _started(owner.pid) == owner.started
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _started(pid: int) -> float:
    """Return when a process started, in ticks since boot: no change of the clock affects it."""
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        import psutil

        return float(psutil.Process(pid).create_time())


def _machine() -> str:
    """Return boot id and PID namespace, within which process ids are unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _numbers(folder: Path, pattern: str) -> set[int]:
    """Return the attempt numbers among the names in a folder."""
    found = (re.fullmatch(pattern, name) for name in os.listdir(folder))
    return {int(match[1]) for match in found if match}


def _claim(run: Path, owner: Owner) -> None:
    """Claim a number by renaming a folder with owner and token to attempts/NNNN."""
    claim = run / names.CHECKPOINTS / (CLAIM + owner.nonce)  # there, to detect two filesystems here
    folder = names.attempt(run, owner.attempt)
    try:
        os.mkdir(claim)
        os.mkdir(claim / _TOKEN)
        fsio.write_json(claim / _OWNER, asdict(owner))
        os.rename(claim, folder)
    except (OSError, SystemFault) as error:
        there = _owner_of(folder)
        if not (there and there.nonce == owner.nonce):  # else NFS retried a rename that succeeded
            shutil.rmtree(claim, ignore_errors=True)
            number = error.errno if isinstance(error, OSError) else None
            if number in (errno.EEXIST, errno.ENOTEMPTY):
                raise RunTaken(_AT_ONCE.format(run)) from error
            if number == errno.EXDEV:
                raise ConfigError(_LINKED.format(run)) from error
            raise
    fsio.fsync_dir(folder.parent)


def _issue(run: Path, number: int) -> None:
    """Rename the token of an attempt to its fence; check_owned raises if it was revoked."""
    with contextlib.suppress(FileNotFoundError):  # revoked, or NFS retried a rename that succeeded
        os.rename(names.attempt(run, number) / _TOKEN, names.fence(run, number))
    check_owned(names.fence(run, number))


def _revoke(run: Path, number: int, patience_s: float) -> None:
    """Remove the token of an attempt, or the fence that it has become; mark the attempt ended."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it has become a fence
        os.rmdir(names.attempt(run, number) / _TOKEN)
    fsio.put_back(run / names.EXPORT, names.fence(run, number))
    _remove(names.fence(run, number), patience_s)
    try:
        (names.attempt(run, number) / _ENDED).touch()
    except OSError:
        return  # the next attempt checks again whether this one is alive


def _remove(fence: Path, patience_s: float) -> None:
    """Delete a fence, retrying for so long because a process may still be writing into it."""
    deadline = time.monotonic() + patience_s
    while _exists(fence):
        shutil.rmtree(fence, ignore_errors=True)
        if time.monotonic() > deadline and _exists(fence):
            raise SystemFault(
                f"{fence} of an earlier attempt cannot be removed; remove it by hand and start"
                " again"
            )


def _exists(path: Path) -> bool:
    """Return whether a path exists. Raises: SystemFault if the filesystem fails."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise SystemFault(
            f"{path}, the fence of an attempt, cannot be accessed ({error.strerror}); start again"
            " once the filesystem works"
        ) from error
    return True
