"""Where a preparation works, and who alone works there.

The folder, hidden beside the one to make, may hold files of a user: only what fitb makes in it, by
its names and once it is marked, is ever removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fitb.base.errors import DataError, SystemFault
from fitb.base.fsio import read_json
from fitb.corpus.prepare_config import PrepareConfig
from fitb.shards.manifest import MANIFEST

JOBS, PLAN, SETTINGS = "jobs.json", "plan.json", "settings.json"
FOLDERS = ("runs", "minhash", "signed", "pieces", "set", "stages")
_MARK = "made-by-fitb-prepare"
_OWN = (_MARK, JOBS, PLAN, SETTINGS, "given", "tokenizer", *FOLDERS)


def place_of(config: PrepareConfig) -> Path:
    """Return the folder to make, absolute, its links followed: it appears by a rename."""
    return Path(os.path.realpath(config.out))


@contextlib.contextmanager
def alone(config: PrepareConfig) -> Iterator[None]:
    """Hold the lock that one preparation at a time has; its file is gone afterwards.

    Raises: SystemFault where the folder to make cannot be; DataError where another process holds
        the lock, or another file has its name.
    """
    folder = folder_of(config)
    path = folder.parent / f"{folder.name}.lock"
    lock = FileLock(path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)  # the lock below tells less of what is wrong with a place
        if not any(folder.iterdir()):
            folder.rmdir()
        if path.is_symlink() or (path.exists() and (not path.is_file() or path.stat().st_size)):
            raise DataError(
                f"{path} is not a lock of fitb, which is an empty file; move it away, or name"
                " another folder with --out"
            )
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"out={config.out} is being made by another preparation right now; wait for its end,"
            " or name another folder"
        ) from error
    except OSError as error:
        raise SystemFault(
            f"out={config.out} cannot be made: {error.strerror or error}; name another folder"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def folder_of(config: PrepareConfig) -> Path:
    """Return where this preparation works: hidden, beside the folder that it makes."""
    out = place_of(config)
    return out.parent / f".{out.name}.work"


def check_place(out: Path) -> None:
    """Refuse a place that holds anything but a shard set."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"out={out} is a file; name a new folder")
    if not (out / MANIFEST).exists():
        if any(out.iterdir()):
            raise DataError(f"out={out} holds files that are no shard set; name a new folder")
        if os.path.ismount(out):
            raise DataError(
                f"out={out} is a mount point, which nothing can be renamed to; name a folder in it"
            )


def enter_work(folder: Path) -> None:
    """Make the folder to work in and mark it, unless it is there.

    Raises: DataError where what is there may not be fitb's.
    """
    folder.mkdir(exist_ok=True)
    names = {path.name for path in folder.iterdir()}
    # Before there was a mark, a plan lay among files of fitb alone.
    earlier = all(map(_is_own, names)) and _is_plan(folder / PLAN)
    if names and _MARK not in names and not earlier:
        some = ", ".join(sorted(names - set(_OWN)) or sorted(names))
        raise DataError(
            f"{folder} holds what no preparation put there ({some[:200]}); move it away, or name"
            " another folder with --out"
        )
    (folder / _MARK).touch()


def clear_work(folder: Path) -> None:
    """Remove what a preparation made in its folder; what a user put there stays, and the mark."""
    for path in list(folder.iterdir()):
        if not _is_own(path.name) or path.name == _MARK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def leave_work(folder: Path) -> None:
    """Do what `clear_work` does, and remove the folder if nothing else is in it."""
    clear_work(folder)
    if [path.name for path in folder.iterdir()] == [_MARK]:  # which goes last, for a kill may come
        (folder / _MARK).unlink()
        folder.rmdir()


def _is_plan(path: Path) -> bool:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "stamps" in found


def _is_own(name: str) -> bool:
    written = re.fullmatch(r"\.(.+)\.\d+\.(?:part|old)", name)  # as fsio names what it writes
    return (written[1] if written else name) in _OWN
