"""Watching the ranks: none dies unnoticed, none hangs for ever.

Every rank keeps a connection with rank 0. A process that dies closes it at once, and a host that is
cut off falls silent; either way all ranks end in seconds, instead of waiting in a collective until
its timeout. A rank that makes no step within the deadline writes down where each of its threads is,
tells the others, who do the same, and the job fails; its scheduler starts it again.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fitb.errors import CRASH, FINISHED, RESUME, SystemFault
from fitb.train import attempt
from fitb.train.checkpoint import on_main
from fitb.train.rundir import RunDir
from fitb.world import World

logger = logging.getLogger(__name__)
PING_S = 2.0
SILENCE_S = 30.0  # without a ping: the host is gone
LAST_WORDS_S = 3.0  # for this rank's own error, which says more than that another is gone
_CONNECT_S, _WORD_S = 60.0, 5.0
_TOKEN_BYTES = 16
_AWAY_S = 5.0  # between two rounds that take a quarter of a second
_STDERR = 2
_PING, _HANG = 255, 254  # any other byte is the exit code of a rank that leaves


class Watch:
    """The watch of one rank; a thread of its own until `leave`.

    Args:
        run: where heartbeats, stacks and events go.
        world: this process's place; every rank makes its watch at the same time.
        deadline_s: seconds without a step after which the job ends; None is never.
        on_end: called with the exit code before this process is ended from within.
    Raises: SystemFault where a rank cannot reach rank 0.
    """

    def __init__(
        self,
        run: RunDir,
        world: World,
        deadline_s: float | None,
        on_end: Callable[[int], None] | None = None,
    ) -> None:
        self._run, self._world, self._deadline_s = run, world, deadline_s
        self._on_end = on_end
        self._step, self._moved_s = 0, time.monotonic()
        self._left = threading.Event()
        self._peers = _connect(world) if world.size > 1 else {}
        self._heard_s = dict.fromkeys(self._peers, time.monotonic())
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
        self._step, self._moved_s = step, time.monotonic()

    def leave(self, code: int) -> None:
        """Stop watching, and tell the others that this rank leaves and with which exit code."""
        self._left.set()
        self._thread.join()
        disarm()
        self._tell(code)
        self._listened.close()
        for peer in self._peers:
            peer.close()

    def _beat(self) -> None:
        while not self._left.is_set():
            attempt.beat(self._run.heartbeats, self._world.rank, self._step)
            self._left.wait(attempt.HEARTBEAT_S)

    def _keep(self) -> None:
        armed_s = pinged_s = -1e9
        last_s = time.monotonic()
        while not self._left.is_set():
            now = time.monotonic()
            if now - last_s > _AWAY_S:  # suspended: that it heard nothing says nothing of others
                self._moved_s += now - last_s
                self._heard_s = dict.fromkeys(self._heard_s, now)
            last_s = now
            if self._deadline_s is not None and now - armed_s > attempt.HEARTBEAT_S:
                armed_s = now
                arm(self._deadline_s + 2 * attempt.HEARTBEAT_S)
            if now - pinged_s > PING_S:
                pinged_s = now
                self._tell(_PING)
            self._listen(0.25)
            self._judge(now)

    def _listen(self, seconds: float) -> None:
        """Hear the others out; one that went in good order is no longer listened to."""
        if not self._heard_s:
            self._left.wait(seconds)
        for peer in [key.fileobj for key, _ in self._listened.select(seconds)]:
            assert isinstance(peer, socket.socket)
            try:
                heard = peer.recv(4096)
            except OSError:
                heard = b""
            code = next((byte for byte in heard if byte != _PING), None)
            self._heard_s[peer] = time.monotonic()
            if code in (FINISHED, RESUME):
                self._listened.unregister(peer)
                del self._heard_s[peer]
            elif code == _HANG:
                self._end(CRASH, "hang", self._peers[peer], "made no step within the deadline")
            elif code is not None:
                self._end(code, "lost_rank", self._peers[peer], f"left with exit code {code}")
            elif not heard:
                self._end(CRASH, "lost_rank", self._peers[peer], "is gone")

    def _judge(self, now: float) -> None:
        for peer, heard_s in self._heard_s.items():
            if now - heard_s > SILENCE_S:
                said = f"has not been heard of for {SILENCE_S:.0f} s"
                self._end(CRASH, "lost_rank", self._peers[peer], said)
        still_s = now - self._moved_s
        if self._deadline_s is not None and still_s > self._deadline_s:
            said = f"made no step for {still_s:.0f} s"
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


def arm(deadline_s: float | None) -> None:
    """Let a thread that needs no interpreter write all stacks to standard error, and end this.

    It acts where nothing else can any more: before the watch begins, and where some call keeps the
    interpreter to itself. Arming again begins anew.
    """
    if deadline_s is not None:
        faulthandler.dump_traceback_later(deadline_s, exit=True, file=_STDERR)


def disarm() -> None:
    faulthandler.cancel_dump_traceback_later()


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
