"""A small process that ends its parent once that keeps its interpreter to itself for too long.

    python -I -S watchdog.py PARENT LIMIT_S

A line on standard input is a sign of life; it names the file that the last words go into, or is
empty. LIMIT_S without one, and the parent is sent SIGNAL, whose handler writes all stacks and needs
no interpreter, and is killed. Time is counted in ticks of this process: one that comes late was
suspended, and counts as one; while the parent is stopped none counts. So a job that is suspended,
whole or in part, for however long, goes on. It ends with its parent, or when the input does.

It needs nothing but the standard library, and little of it: there is one for each rank.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

SIGNAL = signal.SIGURG  # where no handler is set it is ignored
TICK_S = 1.0
DUMP_S = 3.0
_MASKED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE")


def watch(parent: int, limit_s: float) -> None:
    """Watch until the parent ends, or is to be ended."""
    silent_s, words = 0.0, b""
    tick_s = min(TICK_S, limit_s / 4)
    last_s = time.monotonic()
    while os.getppid() == parent:
        if select.select([0], [], [], tick_s)[0]:
            said = os.read(0, 1 << 16)
            if not said:
                return
            silent_s, words = 0.0, said.splitlines()[-1]
        now = time.monotonic()
        if not _is_stopped(parent):
            silent_s += min(now - last_s, tick_s)
        last_s = now
        if silent_s > limit_s:
            _end(parent, limit_s, words)
            return


def _is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


def _end(parent: int, limit_s: float, words: bytes) -> None:
    if os.fork() == 0:  # a log or a filesystem that does not take them is no reason to wait
        _leave_words(parent, limit_s, words)
        os._exit(0)
    _signal(parent, SIGNAL)
    time.sleep(DUMP_S)
    _signal(parent, signal.SIGKILL)


def _leave_words(parent: int, limit_s: float, words: bytes) -> None:
    said = f"a call kept the interpreter to itself for {limit_s:.0f} s"
    if words:
        try:
            with open(words, "w") as file:
                file.write(said + "\n")
        except OSError:
            pass  # its attempt was replaced, or the disk is full: the log has them
    os.write(2, f"fitb: process {parent} is ended: {said}; its stacks are here\n".encode())


def _signal(parent: int, number: int) -> None:
    if os.getppid() == parent:  # or its number may be another's by now
        os.kill(parent, number)


if __name__ == "__main__":
    for name in _MASKED:  # meant for the parent
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    watch(int(sys.argv[1]), float(sys.argv[2]))
