"""Connections bounded in number, in time and in the size of their heads, and a stop in order.

uvicorn bounds none of these: a client that sends nothing, or a byte a second, would keep its place
for ever, and one whose next request meets the end of its connection would not be answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD_BYTES = 65_536  # of request line and headers
_LAME_DUCK_S = 0.5  # open connections are still served, and asked to close, after SIGTERM


class Bounded(HttpToolsProtocol):
    """A connection of uvicorn; `bounded` makes its bounds."""

    max_connections: int
    read_s: float
    _due: asyncio.TimerHandle | None = None
    _head_bytes = 0  # of a head that is not complete; negative once it is

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(_TURNED_AWAY)
            transport.close()
            return
        connection = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # Bounds how long an answer may wait for a client that does not read it.
            with contextlib.suppress(OSError):  # not a TCP connection
                connection.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.read_s * 1000)
                )
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_bytes >= 0:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_request()

    def on_headers_complete(self) -> None:
        self._head_bytes = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self._stop_waiting()
        super().on_message_complete()

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        self._due = self.loop.call_later(self.read_s, self._too_slow)

    def _too_slow(self) -> None:
        """Answer, where a request has begun and is not answered yet, and close."""
        begun = self._head_bytes != 0 and self.parser is not None
        if begun and not (self._head_bytes < 0 and self.cycle.response_started):
            self.transport.write(_TOO_SLOW)
        self.transport.close()

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


def bounded(max_connections: int, read_s: float) -> type[Bounded]:
    """Return a protocol for uvicorn that turns connections away and cuts slow ones off.

    Args:
        max_connections: open at a time.
        read_s: in which a request must have come, and an answer be taken.
    """
    return type("Connection", (Bounded,), {"max_connections": max_connections, "read_s": read_s})


def _plain(status: str, reason: str) -> bytes:
    body = f'{{"error":"{reason}"}}'
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"retry-after: 1\r\nconnection: close\r\n\r\n{body}"
    ).encode()


_TURNED_AWAY = _plain("503 Service Unavailable", "too many connections are open; try again")
_TOO_SLOW = _plain("408 Request Timeout", "the request came too slowly")
_HEAD_TOO_LARGE = _plain(
    "431 Request Header Fields Too Large", f"the headers are larger than {_HEAD_BYTES} bytes"
)


class Server(uvicorn.Server):
    """uvicorn's server, which leaves with 0 when it is told to and answers everybody before.

    Args:
        config: of uvicorn.
        begin: called on the event loop when it listens.
        stop: called when it stops, before the last answers.
    """

    def __init__(
        self, config: uvicorn.Config, begin: Callable[[], None], stop: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._begin = begin
        self._stop = stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then begin."""
        await super().startup(sockets)
        self._begin()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, ask who is there to leave, and only then close idle connections.

        A client that uses its connection just now is answered once more with `connection: close`,
        instead of finding it closed.
        """
        for server in self.servers:
            server.close()
        self._stop()
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _LAME_DUCK_S
        while self.server_state.connections and loop.time() < until_s and not self.force_exit:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, which raises the signal again after an orderly stop."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
