"""Checks of the folders that a run and its libraries write to: filesystem, free space, quota."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fitb.cluster.process import Output, output_of
from fitb.tools.doctor import folder_probe
from fitb.tools.doctor.check import Check, Status
from fitb.tools.doctor.deadlines import reason, together

_PROBE_S = 4.0
_QUOTA_S = 3.0
_SHARED = {
    *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "fuse.ceph", "cifs"),
    *("smb3", "pvfs2", "orangefs", "glusterfs", "fuse.glusterfs", "wekafs", "panfs", "afs"),
    *("fuse.sshfs", "fuse.juicefs", "fuse.dfuse", "fuse.quobyte", "ocfs2", "gfs2"),
}
_LOCAL = {"tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs"}
_LEAST_INODES = 10_000
_CLOCK_S = 5.0  # as in fitb.cluster.preflight
_SMALL_QUOTA_GB = 20.0  # of a home directory: models, compiled operators and caches fill it
_FULL = 0.9


@dataclass(frozen=True)
class Folder:
    """Result of probing a folder, or its nearest existing parent.

    Args:
        path: path of the folder, as given.
        kind: filesystem type, as in /proc/mounts.
        free_bytes: bytes that this user can allocate.
        free_inodes: inodes that this user can allocate; None if the filesystem does not count them.
        error: why a file cannot be written there; empty if it can.
        clock_s: seconds by which the file server's clock is ahead; None if nothing was written.
    """

    path: str
    kind: str
    free_bytes: int
    free_inodes: int | None
    error: str = ""
    clock_s: float | None = None


@dataclass(frozen=True)
class Cache:
    """A folder that a library writes to.

    Args:
        variable: environment variable that sets the folder.
        default: default folder; {home} and {cache} are the home and the XDG cache directory.
        need_gb: free space below which to warn.
        holds: what the folder holds.
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
    Cache("XDG_CACHE_HOME", "{home}/.cache", 1.0, "other caches"),
    Cache("TMPDIR", "/tmp", 1.0, "temporary files"),
    Cache("HOME", "{home}", 1.0, "everything else"),
)


def filesystem(path: str, mounts: str) -> str:
    """Return the filesystem type of a path.

    Args:
        mounts: text of /proc/mounts; a later line covers an earlier one.
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
    """Check that all hosts of a job see a folder.

    Args:
        num_hosts: hosts of the largest partition; below 2 nothing needs to be shared.
    """
    found = f"{folder.path} is on {folder.kind}"
    if folder.kind in _SHARED:
        return Check("ok", f"{name} filesystem", f"{found}, which hosts share")
    if folder.kind in _LOCAL and num_hosts > 1:
        found += ", usually local to this host alone; all hosts of a job must see it"
        fix = f"srun --nodes=2 ls -d {shlex.quote(folder.path)}  # else choose a shared filesystem"
        return Check("warn", f"{name} filesystem", found, fix)
    return Check("ok", f"{name} filesystem", found)


def room(name: str, folder: Folder, need_bytes: float, why: str, fix: str) -> Iterator[Check]:
    """Check that a run can write to its folder, and that it has enough space and inodes."""
    if few := few_inodes(folder):
        status: Status = "bad" if (folder.free_inodes or 0) < 100 else "warn"
        yield Check(status, f"{name} inodes", f"{folder.path} has {few}", fix)
    found = f"{folder.path} has {folder.free_bytes / 1e9:.2f} GB free, expected"
    found += f" {need_bytes / 1e9:.2f} for {why}"
    if folder.free_bytes < need_bytes:
        yield Check("bad", f"{name} space", found, fix)
    elif not folder.error:
        yield Check("ok", f"{name} space", found)
    if folder.error:
        found = f"no file can be written, renamed and removed in {folder.path}: {folder.error}"
        yield Check("bad", f"{name} writable", found, fix)
    else:
        yield Check("ok", f"{name} writable", "a file was written, renamed and removed")


def few_inodes(folder: Folder) -> str:
    """Describe a lack of inodes; empty if there are enough or they are not counted."""
    if folder.free_inodes is None or folder.free_inodes >= _LEAST_INODES:
        return ""
    return f"{folder.free_inodes} inodes free, expected {_LEAST_INODES:,}"


def cache(one: Cache, folder: Folder, fix: str) -> Check:
    """Check that a library can write to its folder."""
    what = f"{folder.path} ({one.holds}, {folder.kind})"
    if folder.error:
        return Check("bad", one.variable, f"{what} cannot be written: {folder.error}", fix)
    if folder.free_bytes < one.need_gb * 1e9:
        found = f"{what} has {folder.free_bytes / 1e9:.2f} GB free, expected {one.need_gb:g}"
        return Check("warn", one.variable, found, fix)
    if few := few_inodes(folder):
        return Check("warn", one.variable, f"{what} has {few}", fix)
    return Check("ok", one.variable, f"{what}: {folder.free_bytes / 1e9:.1f} GB free")


def cache_paths(env: Mapping[str, str]) -> dict[str, str]:
    """Return variable -> folder, as the libraries choose it."""
    names = {
        "home": str(Path.home()),
        "user": env.get("USER", "user"),
        "cache": env.get("XDG_CACHE_HOME") or f"{Path.home()}/.cache",
        "tmp": env.get("TMPDIR") or "/tmp",
    }
    return {c.variable: env.get(c.variable) or c.default.format(**names) for c in CACHES}


def parse_quota(text: str) -> Iterator[tuple[str, int, int, int, int]]:
    """Yield filesystem, bytes used, their limit, files, their limit; 0 is no limit.

    Args:
        text: output of `quota -w`: kB, quota, limit, grace, files, quota, limit, grace. A number
            over its quota has a star, and only then there is a grace.
    """
    for line in text.splitlines():
        words = line.split()
        numbers = [int(word.rstrip("*")) for word in words[1:] if re.fullmatch(r"\d+\*?", word)]
        if len(numbers) >= 6 and re.fullmatch(r"\d+\*?", words[1]):
            used, soft, hard, files, files_soft, files_hard = numbers[:6]
            yield words[0], 1024 * used, 1024 * (hard or soft), files, files_hard or files_soft


def quota(answer: Output, in_home: Sequence[str], place: str) -> Iterator[Check]:
    """Check how full the quotas are.

    Args:
        answer: output of `quota -w`, whose exit code is 1 if one is exceeded.
        in_home: variables of the caches in the home directory.
        place: folder with enough space, in shell syntax.
    """
    rows = list(parse_quota(answer.text))
    if not rows:
        why = "no such command" if answer.missing else answer.problem or "none is set"
        yield Check("skipped", "quota", f"{why}; ask the site whether homes are limited")
    moves = " ".join(f"{name}={place}/{name.lower()}" for name in in_home)
    fix = f"export {moves}" if moves else f"du -sh {place}/* | sort -h"
    for name, used, limit, files, files_limit in rows:
        found = f"{name}: {used / 1e9:.1f} of {limit / 1e9:.1f} GB"
        found += f", {files} of {files_limit} files" if files_limit else ""
        fullest = max(used / limit if limit else 0, files / files_limit if files_limit else 0)
        if fullest >= 1:
            yield Check("bad", "quota", f"{found}: nothing more can be written", fix)
        elif fullest >= _FULL:
            yield Check("warn", "quota", f"{found}: nearly full", fix)
        elif in_home and 0 < limit < _SMALL_QUOTA_GB * 1e9:
            found += f": caches fill it ({', '.join(in_home)} lie in the home directory)"
            yield Check("warn", "quota", found, fix)
        else:
            yield Check("ok", "quota", found)


def clock(folder: Folder) -> Check:
    """Check this host's clock against the file server's."""
    if folder.clock_s is None:
        return Check("skipped", "clock", "nothing could be written to compare it with")
    if abs(folder.clock_s) > _CLOCK_S:
        found = f"{abs(folder.clock_s):.0f} s off that of the filesystem of {folder.path}"
        return Check("warn", "clock", found, "timedatectl set-ntp true  # by the site")
    return Check("ok", "clock", f"agrees with the filesystem of {folder.path} to {_CLOCK_S:g} s")


def probed(paths: Iterable[str]) -> dict[str, Folder | Exception]:
    """Probe folders concurrently, each in its own process."""
    mounts = Path("/proc/mounts").read_text()
    words = (sys.executable, "-S", "-E", folder_probe.__file__)

    def probe(path: str) -> Folder:
        answer = output_of(*words, path, timeout_s=_PROBE_S)
        if not answer.ok:
            late = "no answer" in answer.problem
            raise OSError("its filesystem does not answer" if late else answer.problem)
        found: dict[str, Any] = json.loads(answer.text)
        return Folder(path, filesystem(found.pop("real"), mounts), **found)

    return together({path: partial(probe, path) for path in dict.fromkeys(paths)}, _PROBE_S + 1)


def roomy(run_dir: str, env: Mapping[str, str]) -> str:
    """Return a folder with enough space, in shell syntax: the site's scratch, or the run's."""
    scratch = next((name for name in ("SCRATCH", "WORK", "PSCRATCH") if env.get(name)), None)
    return f"${scratch}" if scratch else shlex.quote(str(Path(run_dir).absolute().parent))


def look_at_quota(run_dir: str, env: Mapping[str, str]) -> Iterator[Check]:
    """Yield the checks of quotas."""
    home = f"{Path.home()}/"
    at_home = [n for n, path in cache_paths(env).items() if path.startswith(home) and n != "TMPDIR"]
    yield from quota(output_of("quota", "-w", timeout_s=_QUOTA_S), at_home, roomy(run_dir, env))


def look(
    run_dir: str,
    shards: str | None,
    need_bytes: float,
    why: str,
    env: Mapping[str, str],
    num_hosts: int,
) -> Iterator[Check]:
    """Yield all checks of folders.

    Args:
        shards: folder of a local shard set; None if it is remote or unknown.
    """
    caches = cache_paths(env)
    named = {"run_dir": run_dir} | ({"shards": shards} if shards else {}) | caches
    folders = probed(named.values())
    for name, path in named.items():
        if isinstance(error := folders[path], Exception):
            fix = f"ls -ld {shlex.quote(path)}"
            yield Check("bad", name, f"{path}: {reason(error)}", fix)
    if isinstance(folder := folders[run_dir], Folder):
        yield shared("run_dir", folder, num_hosts)
        yield from room("run_dir", folder, need_bytes, why, "--run_dir /a/larger/filesystem/NAME")
        yield clock(folder)
    if shards and isinstance(folder := folders[shards], Folder):
        yield shared("shards", folder, num_hosts)
    place = roomy(run_dir, env)
    for one in CACHES:
        name = one.variable
        fix = f"export {name}={place}/{name.lower()} && mkdir -p ${name}"
        if name == "HOME":
            fix = "du -sh ~/.[!.]* ~/* | sort -h  # and remove or move the largest"
        if isinstance(folder := folders[caches[name]], Folder):
            yield cache(one, folder, fix)
