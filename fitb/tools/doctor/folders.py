"""Where a run and the libraries under it write: what filesystem, how much room, may one write."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fitb.cluster.process import Output, output_of
from fitb.tools.doctor import folder_probe
from fitb.tools.doctor.check import Check
from fitb.tools.doctor.deadlines import reason, together

_PROBE_S = 4.0
_QUOTA_S = 3.0
_SHARED = {
    *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "fuse.ceph", "cifs"),
    *("smb3", "pvfs2", "orangefs", "glusterfs", "fuse.glusterfs", "wekafs", "panfs", "afs"),
    *("fuse.sshfs", "fuse.juicefs", "fuse.dfuse", "fuse.quobyte", "ocfs2", "gfs2"),
}
_OF_ONE_HOST = {"tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"}
_LEAST_INODES = 10_000
_CLOCK_S = 5.0  # as in fitb.cluster.preflight
_SMALL_QUOTA_GB = 20.0  # of a home directory: models, compiled operators and caches fill it
_FULL = 0.9


@dataclass(frozen=True)
class Folder:
    """What was seen of a folder.

    Args:
        path: as it was named.
        kind: of its filesystem, as /proc/mounts has it.
        exists: whether it is there; the rest is of the nearest folder above it where not.
        free_bytes: that this user may take.
        free_inodes: the same in files; None where the filesystem does not count them.
        error: of writing there; empty where it worked.
        clock_s: seconds that the file server's clock is ahead; None where nothing was written.
    """

    path: str
    kind: str
    exists: bool
    free_bytes: int
    free_inodes: int | None
    error: str = ""
    clock_s: float | None = None


@dataclass(frozen=True)
class Cache:
    """A folder that a library writes to.

    Args:
        variable: that moves it.
        default: of it; {home} and {cache} stand for the home and the XDG cache directory.
        need_gb: free space below which there is a warning.
        holds: what lies there.
    """

    variable: str
    default: str
    need_gb: float
    holds: str


CACHES = (
    Cache("HF_HOME", "{cache}/huggingface", 2.0, "models and tokenizers of the hub"),
    Cache("TORCH_EXTENSIONS_DIR", "{cache}/torch_extensions", 0.1, "operators of DeepSpeed"),
    Cache("TRITON_CACHE_DIR", "{home}/.triton/cache", 0.5, "compiled kernels"),
    Cache("TORCHINDUCTOR_CACHE_DIR", "{tmp}/torchinductor_{user}", 0.5, "compiled graphs"),
    Cache("WANDB_CACHE_DIR", "{cache}/wandb", 0.5, "artifacts of W&B"),
    Cache("XDG_CACHE_HOME", "{home}/.cache", 1.0, "what has no variable of its own"),
    Cache("TMPDIR", "/tmp", 1.0, "temporary files"),
)


def filesystem(path: str, mounts: str) -> str:
    """Return the type of the filesystem that a path without links lies in.

    Args:
        mounts: text of /proc/mounts; a later line lies over an earlier one.
    """
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def shared(name: str, folder: Folder, num_hosts: int) -> Check:
    """Say whether all hosts of a job see a folder.

    Args:
        name: what the folder is to the run.
        num_hosts: of the largest partition; 0 or 1 where nothing is to be shared.
    """
    found = f"{folder.path} is on {folder.kind}"
    if folder.kind in _SHARED:
        return Check("ok", f"{name} filesystem", f"{found}, which hosts share")
    if folder.kind in _OF_ONE_HOST and num_hosts > 1:
        found += ": of this host alone, unless it exports it; all hosts of a job must see it"
        fix = f"srun --nodes=2 ls -d {shlex.quote(folder.path)}  # else a path on a shared one"
        return Check("warn", f"{name} filesystem", found, fix)
    return Check("ok", f"{name} filesystem", found)


def room(name: str, folder: Folder, need_bytes: float, why: str, fix: str) -> Iterator[Check]:
    """Say whether a run can write into its folder, and enough of it.

    Args:
        need_bytes: of free space.
        why: what takes them.
        fix: for all of it.
    """
    state = folder.path if folder.exists else f"{folder.path}, which can be made,"
    free = f"{folder.free_bytes / 1e9:.2f} GB"
    if folder.free_inodes is not None and folder.free_inodes < _LEAST_INODES:
        status = "bad" if folder.free_inodes < 100 else "warn"
        found = f"{folder.path} has {folder.free_inodes} inodes free, expected {_LEAST_INODES:,}"
        yield Check(status, f"{name} inodes", found, fix)  # type: ignore[arg-type]
    if folder.free_bytes < need_bytes:
        found = f"{folder.path} has {free} free, expected {need_bytes / 1e9:.2f} for {why}"
        yield Check("bad", f"{name} space", found, fix)
    elif not folder.error:
        found = f"{state} has {free} free, {need_bytes / 1e9:.2f} expected for {why}"
        yield Check("ok", f"{name} space", found)
    if folder.error:
        found = f"no file can be written, renamed and removed in {folder.path}: {folder.error}"
        yield Check("bad", f"{name} writable", found, fix)
    else:
        yield Check("ok", f"{name} writable", "a file was written, renamed and removed")


def moved(variable: str, place: str) -> str:
    """Return how to have a library write to another folder."""
    return f"export {variable}={place}/{variable.lower()} && mkdir -p ${variable}"


def cache(one: Cache, folder: Folder, fix: str) -> Check:
    """Say whether a library can write where it will."""
    what = f"{folder.path} ({one.holds}, {folder.kind})"
    if folder.error:
        return Check("bad", one.variable, f"{what} cannot be written: {folder.error}", fix)
    if folder.free_bytes < one.need_gb * 1e9:
        found = f"{what} has {folder.free_bytes / 1e9:.2f} GB free, expected {one.need_gb:g}"
        return Check("warn", one.variable, found, fix)
    if folder.free_inodes is not None and folder.free_inodes < _LEAST_INODES:
        found = f"{what} has {folder.free_inodes} inodes free, expected {_LEAST_INODES:,}"
        return Check("warn", one.variable, found, fix)
    return Check("ok", one.variable, f"{what}: {folder.free_bytes / 1e9:.1f} GB free")


def cache_paths(env: Mapping[str, str], home: str, user: str) -> dict[str, str]:
    """Return variable -> folder, as the libraries take it."""
    names = {
        "home": home,
        "user": user,
        "cache": env.get("XDG_CACHE_HOME") or f"{home}/.cache",
        "tmp": env.get("TMPDIR") or "/tmp",
    }
    return {c.variable: env.get(c.variable) or c.default.format(**names) for c in CACHES}


@dataclass(frozen=True)
class Quota:
    """One line of `quota`: of a filesystem, in kilobytes and files; 0 is no limit."""

    filesystem: str
    used_kb: int
    limit_kb: int
    files: int
    files_limit: int


def parse_quota(text: str) -> list[Quota]:
    """Read `quota -w`: blocks, quota, limit, grace, files, quota, limit, grace.

    A number with a star is over its quota, and a grace is there only then.
    """
    found = []
    for line in text.splitlines():
        words = line.split()
        numbers = [word for word in words[1:] if re.fullmatch(r"\d+\*?", word)]
        if len(numbers) < 6 or not re.fullmatch(r"\d+\*?", words[1]):
            continue
        used, soft, hard, files, files_soft, files_hard = (int(n.rstrip("*")) for n in numbers[:6])
        found.append(Quota(words[0], used, hard or soft, files, files_hard or files_soft))
    return found


def quota(answer: Output, in_home: Sequence[str], place: str) -> list[Check]:
    """Say how full the quotas are.

    Args:
        answer: of `quota -w`, which ends with 1 where one is exceeded.
        in_home: variables of folders that lie in the home directory.
        place: a folder with room, as a shell writes it.
    """
    rows = parse_quota(answer.text)
    if answer.missing or not rows:
        why = "no such command" if answer.missing else answer.problem or "none is set"
        return [Check("skipped", "quota", f"{why}: ask the site whether homes are limited")]
    moves = " ".join(f"{name}={place}/{name.lower()}" for name in in_home)
    fix = f"export {moves}" if moves else f"du -sh {place}/* | sort -h"
    checks = []
    for row in rows:
        limit_gb, used_gb = row.limit_kb * 1024 / 1e9, row.used_kb * 1024 / 1e9
        found = f"{row.filesystem}: {used_gb:.1f} of {limit_gb:.1f} GB"
        found += f", {row.files} of {row.files_limit} files" if row.files_limit else ""
        shares = [
            u / m for u, m in ((row.used_kb, row.limit_kb), (row.files, row.files_limit)) if m
        ]
        fullest = max(shares, default=0.0)
        if fullest >= 1:
            checks.append(Check("bad", "quota", f"{found}: nothing more can be written", fix))
        elif fullest >= _FULL:
            checks.append(Check("warn", "quota", f"{found}: nearly full", fix))
        elif row.limit_kb and limit_gb < _SMALL_QUOTA_GB and in_home:
            found += f": caches fill it ({', '.join(in_home)} lie in the home directory)"
            checks.append(Check("warn", "quota", found, fix))
        else:
            checks.append(Check("ok", "quota", found))
    return checks


def clock(folder: Folder) -> Check:
    """Say whether this host and the file server agree on the time."""
    if folder.clock_s is None:
        return Check("skipped", "clock", "nothing could be written to compare it with")
    if abs(folder.clock_s) > _CLOCK_S:
        found = f"{abs(folder.clock_s):.0f} s off that of the filesystem of {folder.path}"
        return Check("warn", "clock", found, "timedatectl set-ntp true  # by the site")
    return Check("ok", "clock", f"agrees with the filesystem of {folder.path} to {_CLOCK_S:g} s")


def seen(paths: Sequence[str]) -> dict[str, Folder | Exception]:
    """Look at folders, each in a process of its own, all at once."""
    mounts = Path("/proc/mounts").read_text()

    def one(path: str) -> Folder:
        answer = output_of(
            sys.executable, "-S", "-E", folder_probe.__file__, path, timeout_s=_PROBE_S
        )
        if not answer.ok:
            late = "no answer" in answer.problem
            raise OSError(
                f"its filesystem gave no answer in {_PROBE_S:g} s" if late else answer.problem
            )
        found: dict[str, Any] = json.loads(answer.text)
        return Folder(path, filesystem(found.pop("real"), mounts), **found)

    return together({path: partial(one, path) for path in paths}, _PROBE_S + 1)


def roomy(run_dir: str, env: Mapping[str, str]) -> str:
    """Return a folder that should have room, as a shell writes it: the site's, or the run's."""
    scratch = next((name for name in ("SCRATCH", "WORK", "PSCRATCH") if env.get(name)), None)
    return f"${scratch}" if scratch else shlex.quote(str(Path(run_dir).absolute().parent))


def look_at_quota(run_dir: str, env: Mapping[str, str]) -> Iterator[Check]:
    """Gather what there is to say of quotas."""
    home = str(Path.home())
    caches = cache_paths(env, home, env.get("USER", "user"))
    at_home = [n for n, p in caches.items() if p.startswith(f"{home}/") and n != "TMPDIR"]
    yield from quota(output_of("quota", "-w", timeout_s=_QUOTA_S), at_home, roomy(run_dir, env))


def look(
    run_dir: str,
    shards: str | None,
    need_bytes: float,
    why: str,
    env: Mapping[str, str],
    num_hosts: int,
) -> Iterator[Check]:
    """Gather what this room judges.

    Args:
        run_dir: of the run.
        shards: folder of a local set; None where it is remote or not known.
        need_bytes: that the run will write.
        why: what takes them.
        num_hosts: of the largest partition.
    """
    home = str(Path.home())
    caches = cache_paths(env, home, env.get("USER", "user"))
    wanted = [run_dir, *([shards] if shards else []), *caches.values(), home]
    folders = seen(list(dict.fromkeys(wanted)))
    place = roomy(run_dir, env)

    def judged(name: str, path: str, judge: Callable[[Folder], Iterable[Check]]) -> Iterable[Check]:
        found = folders[path]
        if isinstance(found, Exception):
            why = f"{path}: {reason(found)}"
            return [Check("bad", name, why, f"ls -ld {shlex.quote(path)}")]
        return judge(found)

    def of_run(folder: Folder) -> Iterator[Check]:
        yield shared("run_dir", folder, num_hosts)
        yield from room("run_dir", folder, need_bytes, why, "--run_dir /a/larger/filesystem/NAME")
        yield clock(folder)

    def of_cache(one: Cache, fix: str, folder: Folder) -> list[Check]:
        return [cache(one, folder, fix)]

    yield from judged("run_dir", run_dir, of_run)
    if shards:
        yield from judged("shards", shards, lambda folder: [shared("shards", folder, num_hosts)])
    largest = "du -sh ~/.[!.]* ~/* | sort -h  # and remove or move the largest"
    for one in (*CACHES, Cache("HOME", home, 1.0, "what has no other place")):
        fix = largest if one.variable == "HOME" else moved(one.variable, place)
        path = caches.get(one.variable, home)
        yield from judged(one.variable, path, partial(of_cache, one, fix))
