"""A folder behind http on loopback: counts requests, and misbehaves on demand."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit


class FileServer:
    """Serves a folder from when it is made until it is left; may stop and start on one port.

    Args:
        folder: the root.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()  # by name of the file
        self.seen: list[str] = []  # queries and Authorization headers
        self.corrupt: Counter[str] = Counter()  # answers to come with a flipped bit
        self.cut: Counter[str] = Counter()  # answers to come that end in the middle
        self.answers: dict[str, int] = {}  # status instead of the file
        self.ranges: list[str] = []  # that were asked for
        self.only: int | None = (
            None  # different training shards it gives; asked for more, it hangs up
        )
        self.asked_for_more = threading.Event()
        self.hold = threading.Event()  # while it is clear, files stop in the middle
        self.hold.set()
        self.holding = threading.Event()  # a file has stopped in the middle
        self._given: set[str] = set()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = _Listener(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and break those that are open."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> FileServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.hold.set()
        self.stop()

    def is_one_too_many(self, name: str) -> bool:
        if self.only is None or not name.startswith("train-"):
            return False
        with self._lock:
            self._given.add(name)
            if len(self._given) > self.only:
                self._given.discard(name)
                return True
        return False

    def content(self, name: str) -> bytes:
        data = bytearray((self.folder / name).read_bytes())
        with self._lock:
            if self.corrupt[name] > 0:
                self.corrupt[name] -= 1
                data[len(data) // 2] ^= 1
        return bytes(data)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            super().setup()
            with server._lock:
                server._open.add(self.connection)

        def finish(self) -> None:
            with server._lock:
                server._open.discard(self.connection)
            super().finish()

        def do_GET(self) -> None:  # noqa: N802
            asked = urlsplit(self.path)
            name = unquote(asked.path).strip("/")
            with server._lock:
                server.requests[name] += 1
                server.seen += [asked.query, self.headers.get("Authorization", "")]
                cut = server.cut[name] > 0
                server.cut[name] -= cut
            if server.is_one_too_many(name):
                server.asked_for_more.set()
                self.close_connection = True
                return
            status = server.answers.get(name, 200)
            if status == 200 and not (server.folder / name).is_file():
                status = 404
            data = server.content(name) if status == 200 else b""
            if status == 200 and (span := self.headers.get("Range")):
                server.ranges.append(span)
                begin, end = (int(part or len(data)) for part in span[6:].split("-"))
                status, size, data = 206, len(data), data[begin : end + 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 206:
                last = begin + len(data) - 1
                self.send_header("Content-Range", f"bytes {begin}-{last}/{size}")
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if not server.hold.is_set():
                server.holding.set()
                server.hold.wait()
            if not cut:
                self.wfile.write(data[len(data) // 2 :])

        def do_HEAD(self) -> None:  # noqa: N802
            path = server.folder / unquote(urlsplit(self.path).path).strip("/")
            self.send_response(200 if path.is_file() else 404)
            self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
