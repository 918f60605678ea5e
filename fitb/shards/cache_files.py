"""Folders that fitb made and marked, and the files that it put there: nothing else is changed.

Everything is reached through a descriptor of its folder, opened without following a link, so what
takes the place of a folder or of a file meanwhile stays as it is.
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
    return ConfigError(
        f"{path} {why}; move it away, or set data.cache_dir (without one, TMPDIR) to another folder"
        " of this node that you may write"
    )


@contextlib.contextmanager
def entered(path: Path, parent: int | None = None) -> Iterator[int]:
    """Yield a descriptor of a folder of this user.

    Args:
        path: no link itself; the folders above it may be.
        parent: descriptor of the folder above it; None goes by the path.
    Raises: ConfigError where it is a link, a file or another user's; FileNotFoundError.
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
    """Make a folder and mark it; one that is there and has the mark is left as it is.

    Several processes may do so at once: all write the same bytes, and nothing else before them.

    Args:
        path, parent: as in `entered`; the folder above exists.
        mark: name of a file in it.
        content: of that file.
    Raises: ConfigError where the folder holds anything without that mark; as `entered` does.
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
    """Yield a descriptor of a mark or a lock: a regular file that has no other name.

    Args:
        folder: descriptor of the folder that it is in.
        flags: os.O_CREAT, or none.
    Raises: ConfigError where it is anything else; FileNotFoundError.
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
    """Lock a file until its descriptor is closed; return False where another process has."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Entry:
    """A file in a marked folder, and the lock beside it.

    The lock holds the number of the inode that fitb put under the name; its time is that of the
    last use. The kernel frees the locks of a killed process.

    Args:
        path: of the file.
        folder: descriptor of the folder.
        lock: descriptor of the lock.
    """

    path: Path
    folder: int
    lock: int

    @property
    def part(self) -> Path:
        """The file while it is being fetched."""
        return self.path.with_name(self.path.name + PART)

    def size(self) -> int | None:
        """Return the bytes of the regular file of this name, whoever put it there."""
        found = self._found(self.path.name)
        return found.st_size if found and stat.S_ISREG(found.st_mode) else None

    def note_use(self) -> None:
        os.utime(self.lock)

    def last_use(self) -> int:
        """Return when the file was last used, in ns."""
        return os.fstat(self.lock).st_mtime_ns

    def owns(self, path: Path) -> bool:
        """Whether the file or its part is there and fitb put it there."""
        found = self._found(path.name)
        if found is None or not stat.S_ISREG(found.st_mode):
            return False
        just_begun = path == self.part and found.st_size == 0  # killed before its record
        return just_begun or self._record() == b"fitb %d\n" % found.st_ino

    def clear(self) -> None:
        """Remove the file and its part; to be called with the lock held alone.

        Raises: ConfigError where fitb did not put them there.
        """
        for path in (self.path, self.part):
            if self.owns(path):
                os.unlink(path.name, dir_fd=self.folder)
            elif self._found(path.name):
                raise foreign(path, "was not put there by fitb")

    def drop_part(self) -> None:
        """Remove the part, if it is there; to be called with the lock held alone."""
        if self.owns(self.part):
            os.unlink(self.part.name, dir_fd=self.folder)

    def begin(self) -> int:
        """Make an empty part where `clear` has been, and return a descriptor of it."""
        flags = _FILE | os.O_CREAT | os.O_EXCL
        part = os.open(self.part.name, flags, 0o600, dir_fd=self.folder)
        os.pwrite(self.lock, b"fitb %d\n" % os.fstat(part).st_ino, 0)
        os.fsync(self.lock)
        return part

    def place(self) -> None:
        """Give a whole part its name.

        Raises: ConfigError where there is a file of this name by now.
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
    """Yield an entry of a marked folder, its lock not taken; the lock is made if need be.

    Raises: ConfigError where the lock is another file.
    """
    lock = path.with_name(path.name + LOCK)
    with opened(folder, lock, os.O_CREAT) as handle:
        entry = Entry(path, folder, handle)
        if not re.fullmatch(rb"(fitb \d+\n)?", entry._record().strip(b"\0")):
            raise foreign(path.parent, f"holds a {lock.name} that fitb did not make")
        yield entry
