"""The processes of one job on this machine, without a scheduler.

with LocalRun(train_command(flags), num_processes=2) as run:
    run.signal(signal.SIGUSR1, rank=1)
    code = run.wait(timeout_s=60)
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from fitb.base import signals
from fitb.base.errors import FINISHED, RESUME, STOP
from fitb.base.world import World

# Settings of glibc's malloc, read at process start: keep freed memory. By default large blocks go
# back to the kernel, and page faults took half of a step on two cores.
MALLOC_KEEPS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
POLL_S = 0.05
TAIL_BYTES = 4_000


def train_command(flags: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "fitb", "train", *flags]


def malloc_settings() -> dict[str, str]:
    """Return the environment that makes malloc keep freed memory; empty on a host with GPUs."""
    return {} if any(map(os.path.exists, _GPU_DEVICES)) else dict(MALLOC_KEEPS)


def hold_port() -> socket.socket:
    """Reserve a loopback port: return a bound socket, which holds the port while it is open.

    Linux does not hand out the port to others, but lets a process with SO_REUSEADDR, as listeners
    of Python, torch and libuv set it, listen on it by number.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def common_code(codes: Sequence[int]) -> int:
    """Return the exit code of a job from those of its processes: the first crash, else the largest.

    Args:
        codes: exit codes in the order of exit; 128 + N if signal N killed a process.
    """
    crashes = [code for code in codes if code not in (FINISHED, RESUME, STOP)]
    return crashes[0] if crashes else max(codes)


class LocalRun:
    """Processes of one job, each with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.

    Only rank 0 writes to the output; if another rank crashes, the end of its output is shown.
    Leaving the context kills the processes that still run.

    Args:
        command: command of every process.
        num_processes: world size.
        env: variables to add to this process's environment.
        output: output of rank 0; None is this process's standard output and error.
        crash_grace_s: seconds between the first crash and SIGKILL for the others.
        exit_grace_s: seconds between the first orderly exit and SIGKILL for the others.
    """

    def __init__(
        self,
        command: Sequence[str],
        num_processes: int,
        *,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
        crash_grace_s: float = 3.0,
        exit_grace_s: float = 60.0,
    ) -> None:
        self._grace_s = {True: crash_grace_s, False: exit_grace_s}
        self._ended: dict[int, int] = {}
        self._outputs: list[IO[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        threads = max(1, (os.cpu_count() or 1) // num_processes)
        shared = {"OMP_NUM_THREADS": str(threads), **malloc_settings(), **os.environ, **(env or {})}
        self._port = hold_port()
        try:
            for rank in range(num_processes):
                world = World(rank, num_processes, rank).env(*self._port.getsockname())
                stream = output
                if rank > 0:
                    stream = tempfile.TemporaryFile()  # noqa: SIM115 - kill() closes it
                    self._outputs.append(stream)
                self._processes.append(_start(command, shared | world, stream))
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> LocalRun:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all ranks that still run."""
        for place, process in enumerate(self._processes):
            if rank in (None, place) and process.poll() is None:
                process.send_signal(number)

    def running(self) -> list[int]:
        """Return the ranks that still run; show the output of those that have crashed."""
        for rank, process in enumerate(self._processes):
            code = process.poll()
            if code is not None and rank not in self._ended:
                self._ended[rank] = code if code >= 0 else 128 - code
                if self._crashed(rank):
                    self._show_end_of(rank)
        return [rank for rank in range(len(self._processes)) if rank not in self._ended]

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for all processes and return the exit code of the job.

        Raises: TimeoutError after `timeout_s` seconds; the processes keep running.
        """
        began = time.monotonic()
        first_end: float | None = None
        while left := self.running():
            now = time.monotonic()
            if timeout_s is not None and now - began > timeout_s:
                raise TimeoutError(f"ranks {left} still run after {timeout_s} s")
            if self._ended:
                first_end = first_end or now
                crashed = any(self._crashed(rank) for rank in self._ended)
                if now - first_end > self._grace_s[crashed]:
                    self.signal(signal.SIGKILL)
            time.sleep(POLL_S)
        return common_code(list(self._ended.values()))

    def kill(self) -> None:
        """Kill the processes that still run."""
        self.signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()
        self._port.close()
        while self._outputs:
            self._outputs.pop().close()

    def _crashed(self, rank: int) -> bool:
        return self._ended[rank] not in (FINISHED, RESUME, STOP)

    def _show_end_of(self, rank: int) -> None:
        if rank == 0 or not self._outputs:
            return
        file = self._outputs[rank - 1]
        size = os.fstat(file.fileno()).st_size
        text = os.pread(file.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
        code = self._ended[rank]
        sys.stderr.write(f"rank {rank} ended with {code}:\n{text.decode(errors='replace')}\n")


def _start(
    command: Sequence[str], env: Mapping[str, str], output: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    # A session of its own, so that Ctrl-C in a terminal reaches a process once, through us.
    return subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


@contextlib.contextmanager
def forwarding(run: LocalRun) -> Iterator[None]:
    """Forward shutdown signals to all processes; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    with signals.handled(signals.SHUTDOWN, lambda number, _: run.signal(number)):
        yield
