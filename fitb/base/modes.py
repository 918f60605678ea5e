"""File permissions: modes that follow the umask, and the reason for a denied access."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path

from fitb.base.errors import ConfigError, FitbError, SystemFault

_PROBE = ".mode"


def match_modes(folder: Path) -> None:
    """Set the modes inside a folder to those of newly created files and folders.

    Some libraries, such as safetensors, ignore the umask and write files for the owner only. The
    modes are read off a probe file and folder, because default ACLs and setgid count too, and the
    umask cannot be read without changing it for other threads.
    """
    of_file, of_folder = _modes(folder)
    for path in folder.rglob("*"):
        status = path.lstat()
        wanted = of_folder if stat.S_ISDIR(status.st_mode) else of_file
        if not stat.S_ISLNK(status.st_mode) and stat.S_IMODE(status.st_mode) != wanted:
            path.chmod(wanted)


def _modes(folder: Path) -> tuple[int, int]:
    """Return the modes of a new file and of a new folder."""
    probe = folder / f"{_PROBE}.{os.getpid()}"
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    of_file = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    probe.mkdir()
    of_folder = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    return of_file, of_folder


def denied(path: Path) -> str:
    """Return which part of a path this user may not read, its owner and the remedy.

    Returns: an empty string if the path is readable or does not exist.
    """
    whole = Path(os.path.realpath(path))
    for part in (*reversed(whole.parents), whole):
        try:
            status = part.stat()
        except OSError:  # it does not exist
            return ""
        needed = os.X_OK if stat.S_ISDIR(status.st_mode) else os.R_OK
        if not os.access(part, needed, effective_ids=True):
            return f"permission denied: {_whom_to_ask(part, status)} `chmod a+rX {part}`"
    return ""


def fault_of(error: OSError, what: str) -> FitbError:
    """Turn an OSError into a ConfigError if it is permanent, else into a SystemFault.

    Permission errors that the modes do not explain count as transient: file servers raise them
    for moments.

    Args:
        error: the error.
        what: what was accessed, if the error names no file.
    """
    name, said = error.filename or what, error.strerror or str(error)
    fault = SystemFault(f"{name}: {said}")
    if error.errno == errno.EROFS:
        return ConfigError(f"{name}: {said}; mount it for writing, or use another folder")
    if error.errno not in (errno.EACCES, errno.EPERM) or error.filename is None:
        return fault
    there = Path(os.path.realpath(name))
    while not os.path.lexists(there):
        there = there.parent
    try:
        status = there.stat()
    except OSError:  # it was removed meanwhile
        return fault
    needed = os.W_OK | (os.X_OK if stat.S_ISDIR(status.st_mode) else os.R_OK)
    if os.access(there, needed, effective_ids=True):
        return fault
    return ConfigError(
        f"{name}: {said}: {_whom_to_ask(there, status)} `chmod -R g+rwX {there}` and `umask 002` in"
        " the jobs of both, or use another folder"
    )


def _whom_to_ask(path: Path, status: os.stat_result) -> str:
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:  # a uid without a name, as in containers
        owner = f"user {status.st_uid}"
    mode = stat.S_IMODE(status.st_mode)
    return f"{path} belongs to {owner} and has mode {mode:04o}; ask {owner} for"
