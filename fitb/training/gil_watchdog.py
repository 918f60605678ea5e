"""A watchdog process that kills its parent if a call does not release the GIL in time.

    python -I -S gil_watchdog.py PARENT LIMIT_S

Each line on standard input resets the timer and names the file for the report (or is empty). After
LIMIT_S without a line the parent gets SIGNAL, whose handler dumps all stacks without needing the
GIL, and is then killed. Time is counted in ticks of this process: a late tick, after a suspension,
counts as one, and none counts while the parent is stopped, so a suspended job is not killed. The
watchdog exits with its parent, or at the end of its input.

It imports little, and only the standard library: there is one per rank.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

SIGNAL = signal.SIGURG  # ignored by default, so harmless without our handler
TICK_S = 1.0
DUMP_S = 3.0
_MASKED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE")


def watch(parent: int, limit_s: float) -> None:
    """Watch until the parent ends or has to be killed.

    Args:
        parent: process id.
        limit_s: seconds without a line after which it is killed.
    """
    silent_s, report = 0.0, b""
    tick_s = min(TICK_S, limit_s / 4)
    last_s = time.monotonic()
    while os.getppid() == parent:
        if select.select([0], [], [], tick_s)[0]:
            lines = os.read(0, 1 << 16)
            if not lines:
                return
            silent_s, report = 0.0, lines.splitlines()[-1]
        now = time.monotonic()
        if not _is_stopped(parent):
            silent_s += min(now - last_s, tick_s)
        last_s = now
        if silent_s > limit_s:
            _end(parent, limit_s, report)
            return


def _is_stopped(pid: int) -> bool:
    """Return whether a process is stopped, by a signal or a debugger."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


def _end(parent: int, limit_s: float, report: bytes) -> None:
    if os.fork() == 0:  # do not wait for a log or filesystem that hangs
        _report(parent, limit_s, report)
        os._exit(0)
    _signal(parent, SIGNAL)
    time.sleep(DUMP_S)
    _signal(parent, signal.SIGKILL)


def _report(parent: int, limit_s: float, report: bytes) -> None:
    reason = f"a call has not released the Python interpreter for {limit_s:.0f} s"
    if report:
        try:
            with open(report, "w") as file:
                file.write(reason + "\n")
        except OSError:
            pass  # its attempt was replaced, or the disk is full: the log has the reason
    os.write(2, f"fitb: killing process {parent}: {reason}; its stacks follow\n".encode())


def _signal(parent: int, number: int) -> None:
    if os.getppid() == parent:  # else the process id may have been reused
        os.kill(parent, number)


if __name__ == "__main__":
    for name in _MASKED:  # meant for the parent
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    watch(int(sys.argv[1]), float(sys.argv[2]))
