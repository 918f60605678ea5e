"""File operations of the cache that only ever change folders and files that fitb created.

Folders are marked by a file. Every file is accessed through a descriptor of its folder, opened
without following links, so that a folder or file that replaces another is never changed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fitb.base.errors import ConfigError

PART, LOCK = ".part", ".lock"
_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST_RECORD = 64  # bytes


def foreign(path: Path, why: str) -> ConfigError:
    """Return the error for a path that fitb did not create."""
    return ConfigError(
        f"{path} {why}; move it away, or set data.cache_dir (without one, TMPDIR) to another folder"
        " of this node that you may write"
    )


@contextlib.contextmanager
def entered(path: Path, parent: int | None = None) -> Iterator[int]:
    """Yield a descriptor of a folder of this user.

    Args:
        path: path of the folder, not a link; its parents may be links.
        parent: descriptor of its parent; None: open it by path.
    Raises: ConfigError if it is a link, a file or another user's; FileNotFoundError.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        folder = os.open(path if parent is None else path.name, flags, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise foreign(path, "is a link or a file, expected a folder that fitb made") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise foreign(path, "cannot be entered, expected a folder that fitb made") from error
        raise
    try:
        if os.fstat(folder).st_uid != os.getuid():
            raise foreign(path, "belongs to another user, expected a folder that fitb made")
        yield folder
    finally:
        os.close(folder)


def make(path: Path, mark: str, content: bytes, parent: int | None = None) -> None:
    """Create a folder with a marker file unless it exists and has the marker.

    Several processes may do so at once: all write the same bytes.

    Args:
        path: as in `entered`.
        mark: name of the marker file.
        content: content of the marker file.
        parent: as in `entered`; the parent exists.
    Raises: ConfigError if the folder holds files but no such marker; as `entered`.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path if parent is None else path.name, 0o700, dir_fd=parent)
    with entered(path, parent) as folder:
        others = set(os.listdir(folder)) - {mark}  # listed before the mark is read
        try:
            with opened(folder, path / mark, 0 if others else os.O_CREAT) as handle:
                found = os.pread(handle, len(content) + 1, 0)
                if found == content:
                    return
                if not others and content.startswith(found):  # a kill may have cut it off
                    os.pwrite(handle, content, 0)
                    os.fsync(handle)
                    return
        except FileNotFoundError:
            pass
    raise foreign(path, f"is not a folder that fitb made: it lacks the right {mark}")


@contextlib.contextmanager
def opened(folder: int, path: Path, flags: int = 0) -> Iterator[int]:
    """Yield a descriptor of a marker or lock: a regular file with a single hard link.

    Args:
        folder: descriptor of its folder.
        path: path of the file.
        flags: os.O_CREAT or 0.
    Raises: ConfigError if it is anything else; FileNotFoundError.
    """
    why = f"holds a {path.name} that fitb did not make"
    try:
        handle = os.open(path.name, _FILE | flags, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENXIO):
            raise
        raise foreign(path.parent, why) from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise foreign(path.parent, why)
        yield handle
    finally:
        os.close(handle)


def take(handle: int, *, shared: bool = False) -> bool:
    """Lock a file until its descriptor is closed; return False if another process holds it."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Entry:
    """A file in a marked folder, and its lock file.

    The lock file contains the inode number of the file that fitb wrote; its modification time is
    that of the last use. The kernel releases the locks of a killed process.

    Args:
        path: path of the file.
        folder: descriptor of its folder.
        lock: descriptor of its lock file.
    """

    path: Path
    folder: int
    lock: int

    @property
    def part(self) -> Path:
        """Path of the partial file during a fetch."""
        return self.path.with_name(self.path.name + PART)

    def size(self) -> int | None:
        """Return the bytes of the regular file of this name, even if fitb did not write it."""
        found = self._found(self.path.name)
        return found.st_size if found and stat.S_ISREG(found.st_mode) else None

    def note_use(self) -> None:
        os.utime(self.lock)

    def last_use(self) -> int:
        """Return the time of last use in ns."""
        return os.fstat(self.lock).st_mtime_ns

    def owns(self, path: Path) -> bool:
        """Whether the file or its partial file exists and fitb wrote it."""
        found = self._found(path.name)
        if found is None or not stat.S_ISREG(found.st_mode):
            return False
        just_begun = path == self.part and found.st_size == 0  # killed before it was recorded
        return just_begun or self._record() == b"fitb %d\n" % found.st_ino

    def clear(self) -> None:
        """Remove the file and its partial file; requires the exclusive lock.

        Raises: ConfigError if fitb did not write them.
        """
        for path in (self.path, self.part):
            if self.owns(path):
                os.unlink(path.name, dir_fd=self.folder)
            elif self._found(path.name):
                raise foreign(path, "was not put there by fitb")

    def drop_part(self) -> None:
        """Remove the partial file, if any; requires the exclusive lock."""
        if self.owns(self.part):
            os.unlink(self.part.name, dir_fd=self.folder)

    def begin(self) -> int:
        """Create an empty partial file after `clear`, and return its descriptor."""
        flags = _FILE | os.O_CREAT | os.O_EXCL
        part = os.open(self.part.name, flags, 0o600, dir_fd=self.folder)
        os.pwrite(self.lock, b"fitb %d\n" % os.fstat(part).st_ino, 0)
        os.fsync(self.lock)
        return part

    def place(self) -> None:
        """Rename a complete partial file to its name.

        Raises: ConfigError if a file of this name exists by now.
        """
        if self._found(self.path.name):
            raise foreign(self.path, "was not put there by fitb")
        os.rename(self.part.name, self.path.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def _found(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _record(self) -> bytes:
        line, end, _ = os.pread(self.lock, _LONGEST_RECORD, 0).partition(b"\n")
        return line + end


@contextlib.contextmanager
def entry_of(folder: int, path: Path) -> Iterator[Entry]:
    """Yield an entry of a marked folder without locking it; create its lock file if need be.

    Raises: ConfigError if the lock file is not fitb's.
    """
    lock = path.with_name(path.name + LOCK)
    with opened(folder, lock, os.O_CREAT) as handle:
        entry = Entry(path, folder, handle)
        if not re.fullmatch(rb"(fitb \d+\n)?", entry._record().strip(b"\0")):
            raise foreign(path.parent, f"holds a {lock.name} that fitb did not make")
        yield entry
