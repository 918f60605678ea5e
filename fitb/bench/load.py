"""A load on `fitb serve`, and what batches gain over one request at a time, and over a pipeline.

Clients are bare HTTP/1.1 over asyncio, a request each at a time: on two cores a full HTTP library
would take more of the machine than the server it measures. (They read answers with a
Content-Length, which is what `fitb serve` sends.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fitb.bench.measure import Spread
from fitb.errors import SystemFault

_START_S = 120.0
_STOP_S = 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """What a server did under load.

    Args:
        requests_per_s: answered with 200 in the time measured.
        p50_ms: median time from the first byte sent to the last received.
        p99_ms: 99 of 100 were answered within it.
        failures: answers other than 200, and connections lost.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failures: int


def drive(
    url: str, bodies: Sequence[bytes], clients: int, seconds: float, warm_up_s: float = 1.0
) -> Load:
    """Have clients post bodies in turn, each as soon as its last was answered.

    Args:
        url: of http, with host, port and path.
        bodies: JSON.
        clients: connections, each with one request at a time.
        seconds: measured, after the warm-up.
    Raises: SystemFault where nothing was answered.
    """
    return asyncio.run(_drive(url, bodies, clients, seconds, warm_up_s))


def requests(texts: Sequence[str]) -> list[bytes]:
    """Return a body for each text."""
    return [json.dumps({"texts": [text]}).encode() for text in texts]


async def _drive(
    url: str, bodies: Sequence[bytes], clients: int, seconds: float, warm_up_s: float
) -> Load:
    where = urlsplit(url)
    head = (
        f"POST {where.path} HTTP/1.1\r\nhost: {where.netloc}\r\n"
        "content-type: application/json\r\ncontent-length: "
    ).encode()
    messages = [b"%s%d\r\n\r\n%s" % (head, len(body), body) for body in bodies]
    loop = asyncio.get_running_loop()
    begin_s = loop.time() + warm_up_s
    run = _Run(messages, begin_s, begin_s + seconds)
    assert where.hostname and where.port
    transports = []
    for number in range(clients):
        transport, _ = await loop.create_connection(
            lambda number=number: _Client(run, number),  # type: ignore[misc]
            where.hostname,
            where.port,
        )
        transports.append(transport)
    await asyncio.sleep(begin_s + seconds - loop.time())
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0.01)
    if not run.times_s:
        raise SystemFault(f"{url} answered nothing in {seconds:g} s; {run.failures} failures")
    times_ms = sorted(1000 * taken for taken in run.times_s)
    return Load(
        round(len(times_ms) / seconds, 1),
        round(statistics.median(times_ms), 2),
        round(times_ms[min(len(times_ms) - 1, len(times_ms) * 99 // 100)], 2),
        run.failures,
    )


class _Run:
    """What the clients share."""

    def __init__(self, messages: Sequence[bytes], begin_s: float, end_s: float) -> None:
        self.messages = messages
        self.begin_s = begin_s
        self.end_s = end_s
        self.times_s: list[float] = []
        self.failures = 0


class _Client(asyncio.Protocol):
    """One connection: sends, waits for the whole answer, sends the next."""

    def __init__(self, run: _Run, number: int) -> None:
        self._run = run
        self._next = number
        self._read = bytearray()
        self._ends = 0  # bytes of the answer, once its head is there
        self._began_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._clock = asyncio.get_running_loop().time
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._clock() < self._run.end_s:
            self._run.failures += 1

    def data_received(self, data: bytes) -> None:
        self._read += data
        if not self._ends:
            head = self._read.find(b"\r\n\r\n")
            if head < 0:
                return
            length = _LENGTH.search(self._read, 0, head + 2)
            self._ends = head + 4 + (int(length[1]) if length else 0)
        if len(self._read) >= self._ends:
            self._answered(self._read.startswith(b"HTTP/1.1 200"))

    def _answered(self, good: bool) -> None:
        now_s = self._clock()
        if not good:
            self._run.failures += 1
        elif self._run.begin_s <= now_s < self._run.end_s:
            self._run.times_s.append(now_s - self._began_s)
        del self._read[:]
        self._ends = 0
        if now_s < self._run.end_s:
            self._send()
        else:
            self._transport.close()

    def _send(self) -> None:
        self._began_s = self._clock()
        self._transport.write(self._run.messages[self._next % len(self._run.messages)])
        self._next += 1


def server(model: str, *flags: str) -> contextlib.AbstractContextManager[str]:
    """Run `fitb serve` on a free port of loopback, as `running` does."""
    return running([sys.executable, "-m", "fitb", "serve", model, "--port", "0", *flags])


def plain_server(model: str) -> contextlib.AbstractContextManager[str]:
    """Run transformers' pipeline behind FastAPI, as `running` does."""
    return running([sys.executable, "-m", "fitb.bench.plain_server", model], (0, -signal.SIGTERM))


@contextlib.contextmanager
def running(command: Sequence[str], good_ends: Sequence[int] = (0,)) -> Iterator[str]:
    """Run a server that says where it listens; yield its URL once it is ready, then SIGTERM it.

    Raises: SystemFault where it does not become ready, or ends otherwise than it should.
    """
    what = " ".join(command[1:4])
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=dict(os.environ))

        def last_words() -> str:
            said.seek(0)
            return said.read().decode(errors="replace")

        try:
            yield _ready(process, what, last_words)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if code not in good_ends:
            raise SystemFault(f"`{what}` ended with {code}: {last_words()[-500:]}")


def _ready(process: subprocess.Popen[bytes], what: str, said: Any) -> str:
    """Wait for a server and return its URL."""
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s and process.poll() is None:
        found = re.search(r"listening at (\S+),", said())
        if found:
            with contextlib.suppress(OSError):  # not yet ready is an HTTPError, which is one
                urllib.request.urlopen(f"{found[1]}/healthz", timeout=5).close()
                return found[1]
        time.sleep(0.05)
    raise SystemFault(f"`{what}` did not become ready: {said()[-500:]}")


def serving(
    model: str | Path,
    texts: Sequence[str],
    clients: int,
    seconds: float,
    repeats: int,
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure the server, turn by turn with itself handling each request alone, and a plain one.

    Alone means that a batch holds one text and all else is the same: code, model, threads, clients.
    The plain one is transformers' pipeline behind FastAPI, under the same clients.

    Args:
        model: a folder.
        texts: one a request.
        clients: at a time.
        seconds: of each measurement.
        repeats: measurements of each.
        flags: of `fitb serve`.
    Returns: `requests_per_s`, `serial_requests_per_s`, `plain_requests_per_s`,
        `server_over_serial`, `server_over_plain`, `p50_ms`, `p99_ms`, each with its spread, and
        `failures` of all.
    """
    bodies = requests(texts)
    rivals = {
        "batched": server(str(model), *flags),
        "serial": server(str(model), *flags, "--max_batch_texts", "1"),
        "plain": plain_server(str(model)),
    }
    loads: dict[str, list[Load]] = {name: [] for name in rivals}
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(rival) for name, rival in rivals.items()}
        for _ in range(repeats):
            for name, url in urls.items():
                loads[name].append(drive(f"{url}/v1/fill", bodies, clients, seconds))

    def spread(name: str, figure: str) -> dict[str, Any]:
        return asdict(Spread.of([getattr(load, figure) for load in loads[name]], 1))

    def over(name: str) -> dict[str, Any]:
        pairs = zip(loads["batched"], loads[name], strict=True)
        return asdict(Spread.of([a.requests_per_s / b.requests_per_s for a, b in pairs]))

    return {
        "requests_per_s": spread("batched", "requests_per_s"),
        "serial_requests_per_s": spread("serial", "requests_per_s"),
        "plain_requests_per_s": spread("plain", "requests_per_s"),
        "server_over_serial": over("serial"),
        "server_over_plain": over("plain"),
        "p50_ms": spread("batched", "p50_ms"),
        "p99_ms": spread("batched", "p99_ms"),
        "serial_p50_ms": spread("serial", "p50_ms"),
        "plain_p50_ms": spread("plain", "p50_ms"),
        "failures": sum(load.failures for mine in loads.values() for load in mine),
    }
