"""Liveness of the ranks: detect a dead, unreachable or hung rank and end the whole job in seconds.

Every rank keeps a TCP connection with rank 0. A process that dies closes it, and a host that is cut
off sends no more pings; either way all ranks exit within seconds, instead of waiting in a
collective until its timeout. A rank without a step within the deadline dumps the stacks of its
threads and tells the others, which do the same and exit; the scheduler restarts the job.

A job may be suspended (SIGSTOP) for any time, each rank up to SILENCE_S before or after another. So
time is counted in rounds of the watch: a long one, in which the process did not run, counts as a
short one.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import secrets
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fitb.base.errors import CRASH, FINISHED, RESUME, SystemFault
from fitb.base.world import World
from fitb.rundir import ownership
from fitb.rundir.names import hang_report
from fitb.rundir.writer import RunDir
from fitb.training import gil_watchdog
from fitb.training.collectives import on_main

logger = logging.getLogger(__name__)
PING_S = 2.0
SILENCE_S = 30.0  # without a ping: the host is gone
LAST_WORDS_S = 3.0  # grace for this rank's own error, which says more than "another rank is gone"
_CONNECT_S, _REPLY_S = 60.0, 5.0
_TOKEN_BYTES = 16
_ROUND_S, _LONG_S = 0.25, 1.0  # duration of a round, and the most that a longer one counts
_SUSPENDED_S = 5.0  # a round this long: the process was suspended
_STDERR = 2
_UNWATCHED = "a call that never releases the GIL will hang the job"
_PING, _HANG = 255, 254  # any other byte is the exit code of a rank that shuts down


class Watch:
    """The liveness thread of one rank, running until `close`. Collective.

    Args:
        run: run folder, for heartbeats, stack dumps and events.
        world: rank and world size of this process.
        deadline_s: seconds without a step after which the job is ended; None is never.
        watchdog: external watchdog of this process, fed by this thread and ended by `close`.
        on_end: called with the exit code before the watch exits this process.
    Raises: SystemFault if a rank cannot reach rank 0.
    """

    def __init__(
        self,
        run: RunDir,
        world: World,
        deadline_s: float | None,
        watchdog: Watchdog,
        on_end: Callable[[int], None] | None = None,
    ) -> None:
        self._run, self._world, self._deadline_s = run, world, deadline_s
        self._watchdog, self._on_end = watchdog, on_end
        self._step = self._moves = self._moves_seen = 0
        self._still_s = 0.0  # since the last step
        self._closed = threading.Event()
        self._peers = _connect(world) if world.size > 1 else {}
        self._silent_s = dict.fromkeys(self._peers, 0.0)  # since the last byte of each peer
        self._listened = selectors.DefaultSelector()
        for peer in self._peers:
            self._listened.register(peer, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._keep, name="fitb-watch", daemon=True)
        self._thread.start()
        # A separate thread: a filesystem that hangs must not stop the pings.
        self._beating = threading.Thread(
            target=self._write_heartbeats, name="fitb-heartbeat", daemon=True
        )
        self._beating.start()

    def moved(self, step: int) -> None:
        """Record a finished step; the first one of an attempt is an event."""
        if self._step == 0:
            self._run.event("first_step", step=step)
        self._step = step
        self._moves += 1
        self._run.clock.step_done(step)

    def close(self, code: int) -> None:
        """Stop watching, and send the other ranks the exit code of this one."""
        self._closed.set()
        self._thread.join()
        self._beating.join(_REPLY_S)
        self._watchdog.close(code)
        self._send(code)
        self._listened.close()

    def outlive_main(self) -> None:
        """Wait until rank 0 has ended, which may still be closing W&B, for at most a minute.

        Slurm kills the other tasks 10 s after the first one has ended.
        """
        ends_s = time.monotonic() + _CONNECT_S
        for peer in self._peers:
            if self._world.is_main:
                peer.detach()  # open as long as this process lives
                continue
            peer.settimeout(_CONNECT_S)
            with contextlib.suppress(OSError):
                while peer.recv(4096) and time.monotonic() < ends_s:
                    continue
            peer.close()

    def _write_heartbeats(self) -> None:
        last = False
        while not last:
            last = self._closed.is_set()
            seconds = self._run.clock.seconds()
            ownership.heartbeat(self._run.heartbeats, self._world.rank, self._step, seconds)
            self._closed.wait(0.0 if last else ownership.HEARTBEAT_S)

    def _keep(self) -> None:
        fed_s = pinged_s = -1e9
        last_s = time.monotonic()
        report = self._run.heartbeats / hang_report(self._world.rank)
        while not self._closed.is_set():
            now = time.monotonic()
            self._count(now - last_s)
            last_s = now
            if now - fed_s > ownership.HEARTBEAT_S:
                fed_s = now
                self._watchdog.feed(report)
            if now - pinged_s > PING_S:
                pinged_s = now
                self._send(_PING)
            self._listen(_ROUND_S)
            self._check_deadlines()

    def _count(self, seconds: float) -> None:
        """Add the time since the previous round to the counters, without time suspended."""
        if seconds > _SUSPENDED_S:  # this process could not have heard the others
            self._silent_s = dict.fromkeys(self._silent_s, 0.0)
            self._run.clock.suspended(seconds)
        counted_s = min(seconds, _LONG_S)
        for peer in self._silent_s:
            self._silent_s[peer] += counted_s
        moves = self._moves
        self._still_s = self._still_s + counted_s if moves == self._moves_seen else 0.0
        self._moves_seen = moves

    def _listen(self, seconds: float) -> None:
        """Receive from the other ranks; stop listening to one that has shut down in good order."""
        if not self._silent_s:
            self._closed.wait(seconds)
        for peer in [key.fileobj for key, _ in self._listened.select(seconds)]:
            assert isinstance(peer, socket.socket)
            try:
                received = peer.recv(4096)
            except OSError:
                received = b""
            code = next((byte for byte in received if byte != _PING), None)
            self._silent_s[peer] = 0.0
            if code in (FINISHED, RESUME):
                self._listened.unregister(peer)
                del self._silent_s[peer]
            elif code == _HANG:
                self._end(CRASH, "hang", self._peers[peer], "made no step within the deadline")
            elif code is not None:
                self._end(code, "lost_rank", self._peers[peer], f"left with exit code {code}")
            elif not received:
                self._end(CRASH, "lost_rank", self._peers[peer], "is gone")

    def _check_deadlines(self) -> None:
        for peer, silent_s in self._silent_s.items():
            if silent_s > SILENCE_S:
                said = f"has not been heard of for {SILENCE_S:.0f} s"
                self._end(CRASH, "lost_rank", self._peers[peer], said)
        if self._deadline_s is not None and self._still_s > self._deadline_s:
            said = f"made no step for {self._still_s:.0f} s"
            self._end(CRASH, "hang", self._world.rank, said)

    def _end(self, code: int, event: str, rank: int, said: str) -> None:
        """Exit this process, after telling the other ranks and dumping its stacks."""
        if self._closed.is_set():
            return
        self._send(_HANG if event == "hang" else code)
        name = f"stacks-{self._run.attempt:04d}-rank-{self._world.rank:05d}.txt"
        words = (self._run.logs / name,)
        threading.Thread(target=_dump, args=words, daemon=True).start()  # the disk may hang
        if self._closed.wait(LAST_WORDS_S):
            return
        logger.error("rank %d %s after step %d: ending this one", rank, said, self._step)
        self._run.event(event, rank=rank, step=self._step, reason=f"rank {rank} {said}")
        sys.stderr.flush()
        try:
            if self._on_end:
                self._on_end(code)
        finally:
            os._exit(code)

    def _send(self, byte: int) -> None:
        for peer in self._peers:
            try:
                peer.send(bytes([byte]))
            except OSError:
                continue  # it is gone; `_listen` will notice


class Watchdog:
    """Child process (gil_watchdog.py) that kills this one if it stops feeding it.

    It covers what the watch cannot: hangs before the watch starts, and calls that never release the
    GIL. If it cannot be started or dies, a warning is logged.

    Args:
        deadline_s: deadline of the watch in seconds, to which a margin is added so that the watch
            acts first; None is no watchdog.
    """

    def __init__(self, deadline_s: float | None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        faulthandler.enable(_STDERR, all_threads=True)  # an abort by NCCL leaves stacks, too
        if deadline_s is None:
            return
        limit_s = deadline_s + 2 * ownership.HEARTBEAT_S
        words = [gil_watchdog.__file__, str(os.getpid()), str(limit_s)]
        faulthandler.register(gil_watchdog.SIGNAL, file=_STDERR, all_threads=True)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                cwd="/",
                bufsize=0,
            )
        except OSError as error:
            logger.warning("no watchdog (%s): %s", error, _UNWATCHED)
            return
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)  # the child may be suspended

    def feed(self, report: Path) -> None:
        """Reset the watchdog's timer, and name the file for its report should it fire."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            os.write(self._process.stdin.fileno(), os.fsencode(report.absolute()) + b"\n")
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("the watchdog is gone (%s): %s", error, _UNWATCHED)
            self.close(CRASH)

    def close(self, code: int) -> None:
        """End the watchdog, whatever the exit code; idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(_REPLY_S)
        except subprocess.TimeoutExpired:  # suspended
            process.kill()
            process.wait()
        faulthandler.unregister(gil_watchdog.SIGNAL)


def _dump(path: Path) -> None:
    """Write the stacks of all threads to a file, or to standard error if that fails."""
    try:
        with open(path, "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError:
        faulthandler.dump_traceback(_STDERR, all_threads=True)


def _connect(world: World) -> dict[socket.socket, int]:
    """Connect each rank with rank 0; return this rank's sockets and the rank at their other end."""
    listeners: list[socket.socket] = []

    def listen() -> tuple[int, bytes]:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        address, backlog = ("", 0), world.size
        server = socket.create_server(address, family=family, backlog=backlog, dualstack_ipv6=both)
        listeners.append(server)
        return server.getsockname()[1], secrets.token_bytes(_TOKEN_BYTES)

    port, token = on_main(listen, world)
    address = (os.environ["MASTER_ADDR"], port)
    try:
        if listeners:
            return _accept(listeners[0], token, world.size - 1)
        peer = socket.create_connection(address, _CONNECT_S)
        peer.sendall(token + world.rank.to_bytes(4, "big"))
        return {_ready(peer): 0}
    except OSError as error:
        raise SystemFault(
            f"rank {world.rank}: no connection with rank 0 at {address[0]}:{address[1]} ({error});"
            " hosts of a job must reach each other on any port"
        ) from error


def _accept(listener: socket.socket, token: bytes, number: int) -> dict[socket.socket, int]:
    peers: dict[socket.socket, int] = {}
    with listener:
        listener.settimeout(_CONNECT_S)
        while len(peers) < number:
            peer = listener.accept()[0]
            peer.settimeout(_REPLY_S)
            try:
                hello = peer.recv(_TOKEN_BYTES + 4, socket.MSG_WAITALL)
            except OSError:
                hello = b""
            if hello[:_TOKEN_BYTES] == token:
                peers[_ready(peer)] = int.from_bytes(hello[_TOKEN_BYTES:], "big")
            else:  # not a rank of this job
                peer.close()
    return peers


def _ready(peer: socket.socket) -> socket.socket:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.settimeout(PING_S)  # the most that a send may block the watch
    return peer
