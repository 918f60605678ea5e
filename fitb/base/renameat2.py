"""renameat2: RENAME_NOREPLACE and RENAME_EXCHANGE, with a fallback for the former."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

NOREPLACE, EXCHANGE = 1, 2  # flags of renameat2
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # EINVAL: fsync of a folder, on CIFS
_THERE = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
_AT_FDCWD = -100


def rename(source: Path, target: Path, flag: int) -> bool:
    """Rename a folder with a flag of renameat2.

    Args:
        source: folder to rename.
        target: its new name.
        flag: NOREPLACE or EXCHANGE. Without support for NOREPLACE a plain rename is used, which
            never replaces a folder that is not empty.
    Returns: False if the target exists (NOREPLACE), or exchange is not supported (EXCHANGE).
    Raises: OSError for any other failure.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    number = errno.ENOSYS
    if call is not None:
        if not call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag):
            return True
        number = ctypes.get_errno()
    failure = OSError(number, os.strerror(number), str(target))
    try:
        if number not in (*UNSUPPORTED, errno.EPERM):  # EPERM: a container's seccomp filter
            raise failure
        if flag == NOREPLACE:
            os.rename(source, target)
        return flag == NOREPLACE
    except OSError as error:
        if flag == NOREPLACE and error.errno in _THERE:
            return False
        raise
