"""What lies in a folder, so that a change of anything shows."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

Facts = tuple[object, ...]


def snapshot(root: Path) -> dict[str, Facts]:
    """Return mode, owner, inode, time, links, target and content of everything, by path.

    No link is followed. A file of more than 1 MB is known by its size and time alone.

    Args:
        root: a folder, or a file or link alone.
    """
    paths = [root]
    for folder, folders, files in os.walk(root) if not root.is_symlink() else ():
        paths += [Path(folder, name) for name in (*folders, *files)]
    return {str(path.relative_to(root)): _facts(path) for path in paths if os.path.lexists(path)}


def _facts(path: Path) -> Facts:
    here = path.lstat()
    facts: Facts = (oct(here.st_mode), here.st_uid, here.st_ino, here.st_mtime_ns)
    if path.is_symlink():
        return (*facts, os.readlink(path))
    if not stat.S_ISREG(here.st_mode):
        return facts
    small = here.st_size <= 1_000_000
    content = hashlib.sha256(path.read_bytes()).hexdigest() if small else ""
    return (*facts, here.st_nlink, here.st_size, content)


def touched(before: dict[str, Facts], root: Path) -> list[str]:
    """Return the paths of a snapshot that are gone or changed."""
    now = snapshot(root)
    return sorted(path for path, facts in before.items() if now.get(path) != facts)
