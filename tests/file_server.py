"""A folder behind http on loopback: counts requests, and misbehaves on demand."""

from __future__ import annotations

import math
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

from http_server import Handler, HttpServer


class FileServer(HttpServer):
    """Serves a folder.

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
        self.only = math.inf  # training shards that it gives; asked for another, it hangs up
        self.asked_for_more = threading.Event()
        self.holding = threading.Event()  # a file has stopped in the middle, as `hold` is clear
        self._given: set[str] = set()
        super().__init__(_Files)

    def is_one_too_many(self, name: str) -> bool:
        if name.startswith("train-"):
            with self.lock:
                if len(self._given | {name}) > self.only:
                    return True
                self._given.add(name)
        return False

    def content(self, name: str) -> bytes:
        data = bytearray((self.folder / name).read_bytes())
        with self.lock:
            if self.corrupt[name] > 0:
                self.corrupt[name] -= 1
                data[len(data) // 2] ^= 1
        return bytes(data)


class _Files(Handler):
    def do_GET(self) -> None:  # noqa: N802
        server, asked = self.owner, urlsplit(self.path)
        name = unquote(asked.path).strip("/")
        with server.lock:
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
        path = self.owner.folder / unquote(urlsplit(self.path).path).strip("/")
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
