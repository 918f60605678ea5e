"""Freed memory stays with a process that asks for it, and goes back in one that does not."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, json, re, sys
from fitb.allocator import keep_freed_memory
known = keep_freed_memory(sys.argv[1] == "keep")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
block = libc.malloc(200_000_000)
ctypes.memset(block, 1, 200_000_000)
libc.free(block)
status = open("/proc/self/status").read()
held_mb = int(re.search(r"VmRSS:\\s+(\\d+)", status)[1]) * 1024 / 1e6
print(json.dumps([known, held_mb]))
"""


@pytest.mark.parametrize("keep", [True, False])
def test_a_freed_block_of_200_mb_stays_or_goes(keep):
    command = [sys.executable, "-c", SCRIPT, "keep" if keep else "return"]
    known, held_mb = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    if not known:
        pytest.skip("this C library has no mallopt")
    assert (held_mb > 200) == keep
