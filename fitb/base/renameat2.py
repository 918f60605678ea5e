"""Renames that never replace, and exchanges of two names, where kernel and filesystem have them."""

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
    """Rename with a flag of renameat2; False where that cannot be.

    With NOREPLACE that is where the target exists; with EXCHANGE where the kernel or the
    filesystem knows no exchange. Where it does not know the other either, a plain rename is as
    good: it never puts a folder over one that holds anything.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    number = errno.ENOSYS
    if call is not None:
        if not call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag):
            return True
        number = ctypes.get_errno()
    failure = OSError(number, os.strerror(number), str(target))
    try:
        if number not in (*UNSUPPORTED, errno.EPERM):  # EPERM: a container's filter of calls
            raise failure
        if flag == NOREPLACE:
            os.rename(source, target)
        return flag == NOREPLACE
    except OSError as error:
        if flag == NOREPLACE and error.errno in _THERE:
            return False
        raise
