"""Single-writer ownership with a fencing token: only the newest attempt of a run can commit.

1. An attempt claims the next number: a folder with its owner and its fencing token is renamed to
   `attempts/0003/`, which fails if that folder exists.
2. It revokes every older attempt, by removing its token, or the fence that the token has become.
3. It renames its own token to `checkpoints/.0003/`, the fence. Everything that it commits is
   written into the fence and leaves it by a rename.

No two fences exist at any moment, and an attempt that was wrongly given up for dead finds nothing
to rename.
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
from fitb.base.world import job_id
from fitb.rundir import names

HEARTBEAT_S = 10.0
SILENT_S = 3 * HEARTBEAT_S  # without a heartbeat: dead
_POLL_S = 0.5
_TOKEN, _ENDED, _OWNER = "token", "ended", "owner.json"  # in the folder of an attempt
CLAIM = ".claim-"  # in checkpoints/, what becomes a folder of attempts/
_ATTEMPT, _FENCE = r"(\d+)(?:\.ended)?", r"\.(\d+)"  # .ended: see has_ended
_AT_ONCE = "{} is being taken over by another job at this moment; one job at a time can write a run"
_GONE = (
    "{}, which lets this attempt commit, is gone, as if a later attempt had come: {}."
    " Start again; where it happens again look at the filesystem"
)
_LINKED = (
    "{0}/checkpoints is on another filesystem than {0}, and what is saved is renamed between the"
    " two; expected one filesystem. Move it back, or move all of {0} and make that a link"
)


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
        nonce: tells two that claim the same number apart; empty in older runs.
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

    @classmethod
    def me(cls, attempt: int, env: Mapping[str, str]) -> Owner:
        return cls(
            attempt,
            job_id(env),
            int(env.get("SLURM_RESTART_COUNT", "0")),
            socket.gethostname(),
            _machine(),
            os.getpid(),
            _started(os.getpid()),
            env.get("SLURM_CLUSTER_NAME", ""),
            secrets.token_hex(8),
        )


def take(
    run: Path,
    env: Mapping[str, str],
    first: int = 1,
    is_over: Callable[[str], bool] = lambda job: False,
) -> int:
    """Make this process the owner of a run, revoke earlier owners, and return the attempt number.

    Args:
        run: the run directory.
        env: of a Slurm job, or of none.
        first: least number to take, for a run that older attempts left no folder of.
        is_over: whether the scheduler knows that another job of this cluster has ended or waits.
    Raises:
        RunTaken: an attempt of another job lives, or another takes over at the same moment.
        Replaced: a later attempt has taken the run over meanwhile.
        SystemFault: what an earlier attempt was writing cannot be removed.
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
                f"{run} belongs to attempt {number}, which lives: {reason}. One job at a"
                " time can write a run; wait for it or end it, or choose another --run_dir"
            )
    mine = max([first, *(number + 1 for number in known)])
    _claim(run, Owner.me(mine, env))
    try:
        if _numbers(attempts, _ATTEMPT) - known != {mine}:  # of whom nobody asked if they live
            raise RunTaken(_AT_ONCE.format(run))
        for number in sorted(unended | fenced):
            _revoke(run, number, SILENT_S)
        _issue(run, mine)
    except (FitbError, OSError):
        release(run, mine)
        raise
    return mine


def has_ended(run: Path, number: int) -> bool:
    """Return whether an attempt said that it is over, or a later one has shut it out.

    Earlier versions renamed its folder to `NNNN.ended`.
    """
    folder = names.attempt(run, number)
    if folder.exists():
        return (folder / _ENDED).exists()
    return folder.with_name(f"{folder.name}.ended").exists()


def current_owner(run: Path) -> Owner | None:
    """Return who the newest attempt that has not ended belongs to; None where none can be read."""
    attempts = run / names.ATTEMPTS
    numbers = _numbers(attempts, r"(\d+)") if attempts.is_dir() else set()
    newest = max((number for number in numbers if not has_ended(run, number)), default=None)
    return None if newest is None else _owner_of(names.attempt(run, newest))


def release(run: Path, attempt: int) -> None:
    """End the ownership of an attempt, so that the next one need not ask whether it is alive."""
    try:
        _revoke(run, attempt, 0.0)
    except (FitbError, OSError):
        return  # the next attempt asks


def check_owned(fence: Path) -> None:
    """Raise unless the attempt that this fence belongs to owns its run.

    That the fence is not there is no proof: a filesystem may fail, or remember what was before.

    Raises:
        Replaced: the fence is gone, and there is a later attempt, or this one was ended.
        SystemFault: it is gone without either, or the filesystem cannot tell.
    """
    if _exists(fence):
        return
    run, number = fence.parent.parent, int(fence.name[1:])
    try:
        newest = max(_numbers(run / names.ATTEMPTS, _ATTEMPT), default=0)
        replaced = newest > number or has_ended(run, number)
    except OSError as error:
        raise SystemFault(
            _GONE.format(fence, f"whether one came cannot be told: {error}")
        ) from error
    if not replaced:
        raise SystemFault(_GONE.format(fence, "and none came"))
    raise Replaced(
        f"attempt {number} of {run} has been replaced by a later one; the newest is {newest}, and"
        " this one stops"
    )


def write_fenced(fence: Path, path: Path, content: str | bytes) -> None:
    """Write a whole file of the run; as `fsio.write_atomic`, but only as the owner.

    Raises: Replaced where another attempt owns the run; the file is then as it was.
    """
    part = fence / path.name
    try:
        fsio.write_atomic(part, content)
        os.replace(part, path)
    except OSError:
        check_owned(fence)
        raise
    fsio.fsync_dir(path.parent)


def heartbeat(folder: Path, rank: int, step: int) -> None:
    """Write the heartbeat of a rank into the folder of its attempt; where that fails, none."""
    beat = {"time": time.time(), "step": step, "host": socket.gethostname(), "pid": os.getpid()}
    try:
        (folder / f"rank-{rank:05d}.json").write_text(json.dumps(beat) + "\n")
    except OSError:
        return


def _why_alive(folder: Path, env: Mapping[str, str], is_over: Callable[[str], bool]) -> str | None:
    """Return why an attempt counts as alive; None where it does not.

    What Slurm has requeued or ended is over. On this very machine the process is looked for.
    Anywhere else heartbeats are watched for SILENT_S, by no clock but this one.
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
    if owner and known and owner.job != me.job and is_over(owner.job):
        return None
    began, before = time.monotonic(), _heartbeats(folder)
    while time.monotonic() - began < SILENT_S:
        if _heartbeats(folder) != before:
            where = f"job {owner.job or 'none'} on {owner.host}" if owner else "a job"
            return f"{where} wrote a heartbeat just now"
        time.sleep(_POLL_S)
    return None


def _owner_of(folder: Path) -> Owner | None:
    """Who an attempt belongs to; None where that cannot be read."""
    try:
        found = fsio.read_json(folder / _OWNER)
        names = [field.name for field in fields(Owner)]
        return Owner(**{name: found[name] for name in names if name in found})
    except (OSError, ValueError, TypeError):
        return None


def _heartbeats(folder: Path) -> dict[str, str]:
    """Return the contents of the heartbeats: a filesystem may cache times of files."""
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
    """When a process started; in ticks since the boot, which no clock changes, where Linux tells.

    Raises: psutil.NoSuchProcess
    """
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        import psutil

        return float(psutil.Process(pid).create_time())


def _machine() -> str:
    """What tells two sets of process numbers apart: the boot and the namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _numbers(folder: Path, pattern: str) -> set[int]:
    """Numbers of the attempts that are named in a folder."""
    found = (re.fullmatch(pattern, name) for name in os.listdir(folder))
    return {int(match[1]) for match in found if match}


def _claim(run: Path, owner: Owner) -> None:
    """Make the folder of an attempt, with its token in it, which can succeed once for a number.

    It is made in checkpoints/, so that what cannot be renamed between the two is found out here.

    Raises: RunTaken where another has that number; ConfigError where they are two filesystems.
    """
    claim = run / names.CHECKPOINTS / (CLAIM + owner.nonce)
    folder = names.attempt(run, owner.attempt)
    try:
        os.mkdir(claim)
        os.mkdir(claim / _TOKEN)
        fsio.write_json(claim / _OWNER, asdict(owner))
        os.rename(claim, folder)
    except (OSError, SystemFault) as error:
        there = _owner_of(folder)
        if not (there and there.nonce == owner.nonce):  # else NFS lost the answer, and asked again
            shutil.rmtree(claim, ignore_errors=True)
            number = error.errno if isinstance(error, OSError) else None
            if number in (errno.EEXIST, errno.ENOTEMPTY):
                raise RunTaken(_AT_ONCE.format(run)) from error
            if number == errno.EXDEV:
                raise ConfigError(_LINKED.format(run)) from error
            raise
    fsio.fsync_dir(folder.parent)


def _issue(run: Path, number: int) -> None:
    """Make the token of an attempt its fence.

    Raises: Replaced or SystemFault where somebody has taken the token away.
    """
    with contextlib.suppress(FileNotFoundError):  # revoked; or NFS lost the answer, and asked again
        os.rename(names.attempt(run, number) / _TOKEN, names.fence(run, number))
    check_owned(names.fence(run, number))


def _revoke(run: Path, number: int, patience_s: float) -> None:
    """Take from an attempt for good what lets it commit, whether it has become a fence or not.

    Raises: SystemFault where something does not go away.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it became a fence
        os.rmdir(names.attempt(run, number) / _TOKEN)
    fsio.put_back(run / names.EXPORT, names.fence(run, number))
    _remove(names.fence(run, number), patience_s)
    try:
        (names.attempt(run, number) / _ENDED).touch()
    except OSError:
        return  # the next attempt asks once more whether this one lives


def _remove(fence: Path, patience_s: float) -> None:
    """Delete a fence whole, against a process that may still be writing into it.

    Raises: SystemFault where it does not go away.
    """
    deadline = time.monotonic() + patience_s
    while _exists(fence):
        shutil.rmtree(fence, ignore_errors=True)
        if time.monotonic() > deadline and _exists(fence):
            raise SystemFault(
                f"{fence} of an earlier attempt cannot be removed; expected to own it. Remove it"
                " by hand, and start again"
            )


def _exists(path: Path) -> bool:
    """Whether there is something. Raises: SystemFault where the filesystem fails to tell."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise SystemFault(
            f"{path} cannot be looked at ({error.strerror}); expected the folder of an attempt."
            " Start again once the filesystem answers"
        ) from error
    return True
