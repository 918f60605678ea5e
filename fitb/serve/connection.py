"""Connection limits: number per address, time to send a request, size of headers.

uvicorn has none of these: a client that sends nothing, or a byte per second, would keep its
connection for ever. (Its `limit_concurrency` refuses new clients and keeps idle ones.)

If all slots are taken, a new connection replaces the longest idle connection of the address with
the most idle ones.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fitb.serve.serve_config import is_loopback

_HEAD_BYTES = 65_536  # most bytes of request line and headers


class Places:
    """Connection slots by client address; used on the event loop only.

    Args:
        most: most connections in total, and of loopback.
        of_address: most connections of any other address.
    """

    def __init__(self, most: int, of_address: int) -> None:
        self._most = most
        self._of_address = of_address
        self._taken: Counter[str] = Counter()
        self._waiting: dict[Bounded, str] = {}  # idle connections, the longest idle first

    def take(self, address: str) -> bool:
        """Take a slot, closing an idle connection if necessary; return whether there was one."""
        most = self._most if is_loopback(address) else self._of_address
        if self._taken[address] >= most and not self._close_one_of(address):
            return False
        if self._taken.total() >= self._most and not self._close_one_of():
            return False
        self._taken[address] += 1
        return True

    def leave(self, connection: Bounded, address: str) -> None:
        """Give a slot back."""
        self.go_on(connection)
        self._taken[address] -= 1
        if not self._taken[address]:
            del self._taken[address]

    def wait(self, connection: Bounded, address: str) -> None:
        """Mark a connection as idle: it waits for a request."""
        self.go_on(connection)
        self._waiting[connection] = address

    def go_on(self, connection: Bounded) -> None:
        """Mark a connection as busy."""
        self._waiting.pop(connection, None)

    def _close_one_of(self, address: str | None = None) -> bool:
        """Close the longest idle connection of an address, by default of the one with the most."""
        waiting = [each for each in self._waiting.values() if address in (None, each)]
        if not waiting:
            return False
        most = max(waiting, key=self._taken.__getitem__)
        next(one for one, each in self._waiting.items() if each == most).give_way()
        return True


class Bounded(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits; a subclass of each server sets the first two.

    Args:
        places: connection slots.
        read_s: seconds in which a client must send its request, and read its response.
    """

    places: Places
    read_s: float
    _address = ""
    _has_place = False
    _due: asyncio.TimerHandle | None = None  # set while it waits for a request
    _untaken: asyncio.TimerHandle | None = None  # set while a response waits to be read
    _head_bytes = 0  # bytes of an incomplete head; negative once it is complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._has_place = self.places.take(self._address)
        if not self._has_place:
            transport.write(_TURNED_AWAY)
            transport.close()
            return
        # Limits how long the kernel may hold a response that its client does not read.
        limit = socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.read_s * 1000)
        transport.get_extra_info("socket").setsockopt(*limit)
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
        if self._due is None:  # the timer of the first request starts with the connection
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
        """Close, so that another connection gets the slot."""
        self._leave()
        self._close(_TURNED_AWAY)

    def _take_in_time(self) -> None:
        """Abort the connection if its client does not read the response in read_s."""
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
        """Close; first send `answer` if a request has begun and has no response yet."""
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


def _plain(status: str, reason: str) -> bytes:
    body = f'{{"error":"{reason}"}}'
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"retry-after: 1\r\nconnection: close\r\n\r\n{body}"
    ).encode()


_TURNED_AWAY = _plain("503 Service Unavailable", "too many connections are open; try again")
_TOO_SLOW = _plain("408 Request Timeout", "the request was sent too slowly")
_HEAD_TOO_LARGE = _plain(
    "431 Request Header Fields Too Large", f"the headers are larger than {_HEAD_BYTES} bytes"
)
