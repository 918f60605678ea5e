"""Memory that a process has freed stays with it: on CPUs, giving it back costs more than the work.

A step allocates and frees the same large tensors over and over. glibc returns them to the kernel,
which hands out zeroed pages again, one fault for every 4 kB; on two cores half of a training step
went there (docs/benchmarks.md).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h
_NEVER = 2**31 - 1
_MOST_MAPPINGS = 65_536  # glibc's default
_DYNAMIC_MB = 32  # where glibc's own threshold ends when large blocks are freed


def keep_freed_memory(keep: bool = True) -> bool:
    """Have malloc serve large blocks from its heap and never shrink it, or as it was again.

    Args:
        keep: False returns what is free, and to the thresholds that glibc arrives at by itself.
    Returns: whether this C library knows how; others than glibc are left alone.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        return False
    if keep:
        settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER}
    else:
        settings = {
            _MMAP_MAX: _MOST_MAPPINGS,
            _MMAP_THRESHOLD: _DYNAMIC_MB << 20,
            _TRIM_THRESHOLD: 2 * _DYNAMIC_MB << 20,
        }
    done = all(mallopt(name, value) for name, value in settings.items())
    if not keep:
        malloc_trim(0)
    return done
