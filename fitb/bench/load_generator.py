"""`fitb serve` under load, beside itself handling each request alone, and beside a pipeline.

Clients are HTTP/1.1 by hand over asyncio: on two cores a full HTTP library would take more of the
machine than the server it measures. They read answers with a Content-Length, as these servers send.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fitb.base.errors import SystemFault
from fitb.bench.timing import Spread

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
    """Return a body for each text."""
    return [json.dumps({"texts": [text]}).encode() for text in texts]


async def _drive(
    url: str, bodies: Sequence[bytes], clients: int, seconds: float, warm_up_s: float
) -> tuple[list[float], int]:
    """Return the seconds that each answered request took, and the number of failures."""
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
    """Read an answer to its end; return whether it is a 200."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    await reader.readexactly(int(length[1]) if length else 0)
    return head.startswith(b"HTTP/1.1 200")


@contextlib.contextmanager
def running(command: Sequence[str], good_ends: Sequence[int] = (0,)) -> Iterator[str]:
    """Run a server that says where it listens; yield its URL once it is ready, then SIGTERM it.

    Raises: SystemFault where it does not become ready, or ends otherwise than it should.
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
    """Measure the server, turn by turn with itself handling each request alone, and a pipeline.

    Alone means that a batch holds one text and all else is the same: code, model, threads, clients.

    Args:
        model: a folder.
        texts: one a request.
        clients: at a time.
        seconds: of each measurement.
        repeats: measurements of each.
        flags: of `fitb serve`.
    Returns: figures of the server, those of its rivals with `serial_` and `plain_` (the pipeline)
        before their names, its ratio to each, all with their spread, and `failures` of all.
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

    def over(rival: str) -> dict[str, Any]:
        pairs = zip(speeds[""], speeds[rival], strict=True)
        return asdict(Spread.of([ours / theirs for ours, theirs in pairs]))

    return {
        **{f"{name}requests_per_s": asdict(Spread.of(speeds[name], 1)) for name in rivals},
        "server_over_serial": over("serial_"),
        "server_over_plain": over("plain_"),
        **{
            f"{name}p50_ms": asdict(Spread.of([load.p50_ms for load in mine], 1))
            for name, mine in loads.items()
        },
        "p99_ms": asdict(Spread.of([load.p99_ms for load in loads[""]], 1)),
        "failures": sum(load.failures for mine in loads.values() for load in mine),
    }
