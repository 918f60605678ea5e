"""Connections bounded in number, in time and in the size of their heads.

uvicorn bounds none of these: a client that sends nothing, or a byte a second, would keep its place
for ever. (Its `limit_concurrency` refuses newcomers and lets those stay.)

Who comes when all places are taken gets that of the connection which has waited longest for a
request to come, among those of the address that has most of them: whoever holds many loses first.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fitb.serve.settings import is_loopback

_HEAD_BYTES = 65_536  # of request line and headers


class Places:
    """Places for connections, by address; all on the event loop.

    Args:
        most: of all addresses together.
        of_address: of one that is not loopback.
    """

    def __init__(self, most: int, of_address: int) -> None:
        self._most = most
        self._of_address = of_address
        self._taken: Counter[str] = Counter()
        self._waiting: dict[Bounded, str] = {}  # for a request to come, the longest first

    def take(self, address: str) -> bool:
        """Take a place, if need be that of another connection; say whether there was one."""
        most = self._most if is_loopback(address) else self._of_address
        if self._taken[address] >= most and not self._close_one_of(address):
            return False
        if self._taken.total() >= self._most and not self._close_one_of():
            return False
        self._taken[address] += 1
        return True

    def leave(self, connection: Bounded, address: str) -> None:
        """Give a place back."""
        self.go_on(connection)
        self._taken[address] -= 1
        if not self._taken[address]:
            del self._taken[address]

    def wait(self, connection: Bounded, address: str) -> None:
        """Note that a connection waits for a request to come."""
        self.go_on(connection)
        self._waiting[connection] = address

    def go_on(self, connection: Bounded) -> None:
        """Note that it does not wait any more."""
        self._waiting.pop(connection, None)

    def _close_one_of(self, address: str | None = None) -> bool:
        """Close what waits longest at an address; None: at the one that has most places."""
        waiting = [each for each in self._waiting.values() if address in (None, each)]
        if not waiting:
            return False
        most = max(waiting, key=self._taken.__getitem__)
        next(one for one, each in self._waiting.items() if each == most).give_way()
        return True


class Bounded(HttpToolsProtocol):
    """A connection of uvicorn; `bounded` makes its bounds."""

    places: Places
    read_s: float
    _address = ""
    _has_place = False
    _due: asyncio.TimerHandle | None = None  # set while it waits for a request to come
    _untaken: asyncio.TimerHandle | None = None  # set while an answer waits for its client
    _head_bytes = 0  # of a head that is not complete; negative once it is

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._has_place = self.places.take(self._address)
        if not self._has_place:
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
        self._leave()
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None
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
        if self._due is None:  # the first request of a connection has begun to come with it
            self._wait_for_request()

    def on_headers_complete(self) -> None:
        self._head_bytes = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head_bytes = 0
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._due is None and not self.transport.is_closing():
            self.places.wait(self, self._address)
        self._take_in_time()

    def give_way(self) -> None:
        """Close, for another connection to have the place."""
        self._leave()
        self._close(_TURNED_AWAY)

    def _take_in_time(self) -> None:
        """See to it that an answer is taken in read_s, or given up."""
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None
        if self.transport.get_write_buffer_size():
            self._untaken = self.loop.call_later(self.read_s, self._not_taken)

    def _not_taken(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _leave(self) -> None:
        if self._has_place:
            self._has_place = False
            self.places.leave(self, self._address)

    def _wait_for_request(self) -> None:
        self._due = self.loop.call_later(self.read_s, self._close, _TOO_SLOW)
        self.places.wait(self, self._address)

    def _close(self, answer: bytes) -> None:
        """Answer, where a request has begun and is not answered yet, and close."""
        begun = self._head_bytes != 0 and self.parser is not None
        if begun and not (self._head_bytes < 0 and self.cycle.response_started):
            self.transport.write(answer)
        self.transport.close()
        self._take_in_time()

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self.places.go_on(self)


def bounded(places: Places, read_s: float) -> type[Bounded]:
    """Return a protocol for uvicorn that bounds the places of connections and cuts slow ones off.

    Args:
        places: of all of them.
        read_s: in which a request must have come, and an answer be taken.
    """
    return type("Connection", (Bounded,), {"places": places, "read_s": read_s})


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
