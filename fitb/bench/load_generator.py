"""HTTP load generator, and `fitb serve` under load next to two baseline servers.

Clients write HTTP/1.1 themselves over asyncio: on two cores a full HTTP library would use more CPU
than the server that it measures. They read only responses with a Content-Length.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fitb.base.errors import SystemFault
from fitb.bench.timing import ratios, spread

_START_S = 120.0
_STOP_S = 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """Throughput and latency of a server under load.

    Args:
        requests_per_s: responses with status 200 per second, after the warm-up.
        p50_ms: median latency in milliseconds, from the first byte sent to the last received.
        p99_ms: 99th percentile of the same latency, in milliseconds.
        failures: number of responses with another status, and of connections lost.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failures: int


def drive(
    url: str, bodies: Sequence[bytes], clients: int, seconds: float, warm_up_s: float = 1.0
) -> Load:
    """POST bodies from concurrent closed-loop clients.

    Args:
        url: http URL with host, port and path.
        bodies: JSON request bodies, sent in rotation.
        clients: concurrent connections, each with one request in flight.
        seconds: length of the measurement, after the warm-up.
        warm_up_s: seconds before it that are not counted.
    Raises: SystemFault if no request was answered.
    """
    times_s, failures = asyncio.run(_drive(url, bodies, clients, seconds, warm_up_s))
    if not times_s:
        raise SystemFault(f"{url} answered nothing in {seconds:g} s; {failures} failures")
    times_ms = sorted(1000 * taken for taken in times_s)
    return Load(
        round(len(times_ms) / seconds, 1),
        round(statistics.median(times_ms), 2),
        round(times_ms[min(len(times_ms) - 1, len(times_ms) * 99 // 100)], 2),
        failures,
    )


def requests(texts: Sequence[str]) -> list[bytes]:
    """Return one request body per text."""
    return [json.dumps({"texts": [text]}).encode() for text in texts]


async def _drive(
    url: str, bodies: Sequence[bytes], clients: int, seconds: float, warm_up_s: float
) -> tuple[list[float], int]:
    """Return the latency of each answered request in seconds, and the number of failures."""
    where = urlsplit(url)
    head = (
        f"POST {where.path} HTTP/1.1\r\nhost: {where.netloc}\r\n"
        "content-type: application/json\r\ncontent-length: "
    ).encode()
    messages = [b"%s%d\r\n\r\n%s" % (head, len(body), body) for body in bodies]
    clock = asyncio.get_running_loop().time
    begin_s = clock() + warm_up_s
    times_s: list[float] = []
    failures = 0

    async def client(number: int) -> None:
        nonlocal failures
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            while True:
                sent_s = clock()
                writer.write(messages[number % len(messages)])
                good = await _is_answered(reader)
                if not good:
                    failures += 1
                elif begin_s <= clock():
                    times_s.append(clock() - sent_s)
                number += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            failures += 1
        finally:
            writer.transport.abort()

    tasks = [asyncio.create_task(client(number)) for number in range(clients)]
    await asyncio.wait(tasks, timeout=warm_up_s + seconds)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):  # no connection: nothing that a load does
            raise SystemFault(f"{url}: {error}") from error
    return times_s, failures


async def _is_answered(reader: asyncio.StreamReader) -> bool:
    """Read a whole response; return whether its status is 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    await reader.readexactly(int(length[1]) if length else 0)
    return head.startswith(b"HTTP/1.1 200")


@contextlib.contextmanager
def running(command: Sequence[str], good_ends: Sequence[int] = (0,)) -> Iterator[str]:
    """Start a server, yield its URL once /healthz answers 200, then stop it with SIGTERM.

    Args:
        command: command line of a server that prints "listening at URL,".
        good_ends: exit codes that are no error.
    Raises: SystemFault if it does not become ready, or ends with another code.
    """
    what = " ".join(command[1:4])
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)

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
    """Wait until a server is ready and return its URL."""
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
    """Measure `fitb serve` in turn with itself at batch size 1 and with the pipeline server.

    Args:
        model: model folder.
        texts: texts to fill, one per request.
        clients: concurrent clients.
        seconds: length of each measurement.
        repeats: measurements of each server.
        flags: further flags of `fitb serve`.
    Returns: the spread of throughput and latency of each server, with the prefix `serial_` for
        batch size 1 and `plain_` for the pipeline; throughput ratios to both; `failures` of all.
    """
    served = [sys.executable, "-m", "fitb", "serve", str(model), "--port", "0", *flags]
    pipeline = [sys.executable, "-m", "fitb.bench.pipeline_server", str(model)]
    rivals = {
        "": running(served),
        "serial_": running([*served, "--max_batch_texts", "1"]),
        "plain_": running(pipeline, (0, -signal.SIGTERM)),
    }
    bodies = requests(texts)
    loads: dict[str, list[Load]] = {name: [] for name in rivals}
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(rival) for name, rival in rivals.items()}
        for _ in range(repeats):
            for name, url in urls.items():
                loads[name].append(drive(f"{url}/v1/fill", bodies, clients, seconds))
    speeds = {name: [load.requests_per_s for load in mine] for name, mine in loads.items()}
    return {
        **{f"{name}requests_per_s": spread(speeds[name], 1) for name in rivals},
        "server_over_serial": ratios(speeds[""], speeds["serial_"]),
        "server_over_plain": ratios(speeds[""], speeds["plain_"]),
        **{
            f"{name}p50_ms": spread([load.p50_ms for load in mine], 1)
            for name, mine in loads.items()
        },
        "p99_ms": spread([load.p99_ms for load in loads[""]], 1),
        "failures": sum(load.failures for mine in loads.values() for load in mine),
    }
