"""Watching the ranks: none dies unnoticed, none hangs for ever.

Every rank keeps a connection with rank 0. A process that dies closes it at once, and a host that is
cut off falls silent; either way all ranks end in seconds, instead of waiting in a collective until
its timeout. A rank that makes no step within the deadline writes down where each of its threads is,
tells the others, who do the same, and the job fails; its scheduler starts it again.

A job may be suspended: all of it, for however long, and each rank up to SILENCE_S before or after
another one. So time is counted in rounds of the watch, and a round that took long, because nothing
ran, counts as a short one.
"""

from __future__ import annotations

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
from fitb.rundir.events import words_of
from fitb.rundir.writer import RunDir
from fitb.training import watchdog
from fitb.training.collectives import on_main

logger = logging.getLogger(__name__)
PING_S = 2.0
SILENCE_S = 30.0  # without a ping: the host is gone
LAST_WORDS_S = 3.0  # for this rank's own error, which says more than that another is gone
_CONNECT_S, _WORD_S = 60.0, 5.0
_TOKEN_BYTES = 16
_ROUND_S, _LONG_S = 0.25, 1.0  # a round, and what counts of one that took longer
_AWAY_S = 5.0  # between two rounds: suspended
_STDERR = 2
_UNWATCHED = "a call that keeps the interpreter to itself will hold up the job"
_PING, _HANG = 255, 254  # any other byte is the exit code of a rank that leaves


class Watch:
    """The watch of one rank; a thread of its own until `leave`.

    Args:
        run: where heartbeats, stacks and events go.
        world: this process's place; every rank makes its watch at the same time.
        deadline_s: seconds without a step after which the job ends; None is never.
        outside: is told that this process lives, until `leave` ends it.
        on_end: called with the exit code before this process is ended from within.
    Raises: SystemFault where a rank cannot reach rank 0.
    """

    def __init__(
        self,
        run: RunDir,
        world: World,
        deadline_s: float | None,
        outside: Watchdog,
        on_end: Callable[[int], None] | None = None,
    ) -> None:
        self._run, self._world, self._deadline_s = run, world, deadline_s
        self._outside, self._on_end = outside, on_end
        self._step = self._moves = self._moves_seen = 0
        self._still_s = 0.0  # since a step was done
        self._left = threading.Event()
        self._peers = _connect(world) if world.size > 1 else {}
        self._silent_s = dict.fromkeys(self._peers, 0.0)  # since a peer was heard
        self._listened = selectors.DefaultSelector()
        for peer in self._peers:
            self._listened.register(peer, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._keep, name="fitb-watch", daemon=True)
        self._thread.start()
        # On a thread of its own: a filesystem that does not answer is no reason to fall silent.
        threading.Thread(target=self._beat, name="fitb-heartbeat", daemon=True).start()

    def moved(self, step: int) -> None:
        """Note that a step was done; the first of an attempt is an event."""
        if self._step == 0:
            self._run.event("first_step", step=step)
        self._step = step
        self._moves += 1

    def leave(self, code: int) -> None:
        """Stop watching, and tell the others that this rank leaves and with which exit code."""
        self._left.set()
        self._thread.join()
        self._outside.leave(code)
        self._tell(code)
        self._listened.close()
        for peer in self._peers:
            peer.close()

    def _beat(self) -> None:
        while not self._left.is_set():
            ownership.heartbeat(self._run.heartbeats, self._world.rank, self._step)
            self._left.wait(ownership.HEARTBEAT_S)

    def _keep(self) -> None:
        told_s = pinged_s = -1e9
        last_s = time.monotonic()
        words = self._run.heartbeats / words_of(self._world.rank)
        while not self._left.is_set():
            now = time.monotonic()
            self._count(now - last_s)
            last_s = now
            if now - told_s > ownership.HEARTBEAT_S:
                told_s = now
                self._outside.alive(words)
            if now - pinged_s > PING_S:
                pinged_s = now
                self._tell(_PING)
            self._listen(_ROUND_S)
            self._judge()

    def _count(self, seconds: float) -> None:
        """Count the time since the round before; of a suspension, that this process ran for."""
        if seconds > _AWAY_S:  # that it heard nothing says nothing of others
            self._silent_s = dict.fromkeys(self._silent_s, 0.0)
        counted_s = min(seconds, _LONG_S)
        for peer in self._silent_s:
            self._silent_s[peer] += counted_s
        moves = self._moves
        self._still_s = self._still_s + counted_s if moves == self._moves_seen else 0.0
        self._moves_seen = moves

    def _listen(self, seconds: float) -> None:
        """Hear the others out; one that went in good order is no longer listened to."""
        if not self._silent_s:
            self._left.wait(seconds)
        for peer in [key.fileobj for key, _ in self._listened.select(seconds)]:
            assert isinstance(peer, socket.socket)
            try:
                heard = peer.recv(4096)
            except OSError:
                heard = b""
            code = next((byte for byte in heard if byte != _PING), None)
            self._silent_s[peer] = 0.0
            if code in (FINISHED, RESUME):
                self._listened.unregister(peer)
                del self._silent_s[peer]
            elif code == _HANG:
                self._end(CRASH, "hang", self._peers[peer], "made no step within the deadline")
            elif code is not None:
                self._end(code, "lost_rank", self._peers[peer], f"left with exit code {code}")
            elif not heard:
                self._end(CRASH, "lost_rank", self._peers[peer], "is gone")

    def _judge(self) -> None:
        for peer, silent_s in self._silent_s.items():
            if silent_s > SILENCE_S:
                said = f"has not been heard of for {SILENCE_S:.0f} s"
                self._end(CRASH, "lost_rank", self._peers[peer], said)
        if self._deadline_s is not None and self._still_s > self._deadline_s:
            said = f"made no step for {self._still_s:.0f} s"
            self._end(CRASH, "hang", self._world.rank, said)

    def _end(self, code: int, event: str, rank: int, said: str) -> None:
        """End this process, after its stacks are in the logs and the others know."""
        if self._left.is_set():
            return
        self._tell(_HANG if event == "hang" else code)
        name = f"stacks-{self._run.attempt:04d}-rank-{self._world.rank:05d}.txt"
        path = self._run.logs / name
        threading.Thread(target=dump, args=(path,), daemon=True).start()  # it may take for ever
        if self._left.wait(LAST_WORDS_S):
            return
        logger.error("rank %d %s after step %d: ending this one", rank, said, self._step)
        self._run.event(event, rank=rank, step=self._step, reason=f"rank {rank} {said}")
        sys.stderr.flush()
        try:
            if self._on_end:
                self._on_end(code)
        finally:
            os._exit(code)

    def _tell(self, word: int) -> None:
        for peer in self._peers:
            try:
                peer.send(bytes([word]))
            except OSError:
                continue  # it is gone, as listening will tell


class Watchdog:
    """What ends this process from outside, its stacks written, once its interpreter is held.

    It acts where nothing else can any more: before the watch begins, and where some call keeps the
    interpreter to itself. Where it cannot be started or is gone, a log line says so.

    Args:
        deadline_s: of the watch; it is given some more, for the watch to be the first. None is no
            watchdog.
    """

    def __init__(self, deadline_s: float | None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if deadline_s is None:
            return
        limit_s = deadline_s + 2 * ownership.HEARTBEAT_S
        words = [sys.executable, "-I", "-S", watchdog.__file__, str(os.getpid()), str(limit_s)]
        faulthandler.register(watchdog.SIGNAL, file=_STDERR, all_threads=True)
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd="/", bufsize=0
            )
        except OSError as error:
            logger.warning("there is no watchdog (%s): %s", error, _UNWATCHED)
            return
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)  # it may be suspended

    def alive(self, words: Path) -> None:
        """Say that the interpreter is not held, and which file the last words go into."""
        if self._process is None or self._process.stdin is None:
            return
        try:
            os.write(self._process.stdin.fileno(), os.fsencode(words.absolute()) + b"\n")
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("the watchdog is gone (%s): %s", error, _UNWATCHED)
            self.leave(CRASH)

    def leave(self, code: int) -> None:
        """End it, whatever the exit code; this may be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(_WORD_S)
        except subprocess.TimeoutExpired:  # suspended
            process.kill()
            process.wait()
        faulthandler.unregister(watchdog.SIGNAL)


def dump(path: Path) -> None:
    """Write the stack of each thread of this process; where that fails, to standard error."""
    try:
        with open(path, "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
    except OSError:
        faulthandler.dump_traceback(_STDERR, all_threads=True)


def _connect(world: World) -> dict[socket.socket, int]:
    """Join every rank to rank 0; return the connections of this rank and whose they are.

    Raises: SystemFault
    """
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
            " expected the hosts of a job to reach each other on any port"
        ) from error


def _accept(listener: socket.socket, token: bytes, number: int) -> dict[socket.socket, int]:
    peers: dict[socket.socket, int] = {}
    with listener:
        listener.settimeout(_CONNECT_S)
        while len(peers) < number:
            peer = listener.accept()[0]
            peer.settimeout(_WORD_S)
            try:
                said = peer.recv(_TOKEN_BYTES + 4, socket.MSG_WAITALL)
            except OSError:
                said = b""
            if said[:_TOKEN_BYTES] == token:
                peers[_ready(peer)] = int.from_bytes(said[_TOKEN_BYTES:], "big")
            else:  # a stranger
                peer.close()
    return peers


def _ready(peer: socket.socket) -> socket.socket:
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.settimeout(PING_S)  # sending never keeps the watch for longer
    return peer
