"""`fitb serve` as a process of its own, and clients that behave and that do not."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 120.0
FITB = ("-m", "fitb", "serve")
HELD = (str(Path(__file__).parent / "held_server.py"),)  # the same, with a model that can be held


@dataclass
class Served:
    """A server that runs.

    Args:
        log: what it said on standard output and error.
        token: sent with every request.
    """

    process: subprocess.Popen[bytes]
    log: Path
    token: str = ""

    @property
    def port(self) -> int:
        return int(re.findall(r"listening at http://[\d.]+:(\d+)", self.log.read_text())[0])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str = "/v1/fill", body: Any = None, method: str = "", **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Return status, content (of JSON, else text) and headers of an answer.

        Args:
            body: bytes are sent as they are, others as JSON.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        sent = {"content-type": "application/json"} if body is not None else {}
        if self.token:
            sent["authorization"] = f"Bearer {self.token}"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
            names = {name.lower(): value for name, value in answer.getheaders()}
        if names.get("content-type") == "application/json":
            return answer.status, json.loads(content), names
        return answer.status, content.decode(), names

    def fill(self, *texts: Any, **more: Any) -> Any:
        """Return the answers to texts, which must be good."""
        status, content, _ = self.ask(body={"texts": list(texts), **more})
        assert status == 200, content
        return content["texts"]

    def stop(self) -> int:
        """End it as a supervisor does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)


def wait_for(what: Any) -> None:
    until_s = time.monotonic() + TIMEOUT_S
    while not what():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def assert_alike(found: list[Any], expected: list[Any]) -> None:
    """Answers to texts agree up to the rounding of another batch."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["blanks"] == theirs["blanks"]
        assert len(ours["fillings"]) == len(theirs["fillings"]) > 0
        for one, other in zip(ours["fillings"], theirs["fillings"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def figure(served: Served, name: str) -> float:
    """Read a figure of /metrics."""
    _, text, _ = served.ask("/metrics")
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


@contextlib.contextmanager
def serving(
    folder: Path,
    *words: str,
    program: tuple[str, ...] = FITB,
    token: str = "",
    env: dict[str, str] | None = None,
) -> Iterator[Served]:
    """Start a server on a free port and wait until it is ready; end it where it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    command = [sys.executable, *program, *words, "--port", "0", "--threads", "1"]
    with open(log, "wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, env={**os.environ, **(env or {})}
        )
    served = Served(process, log, token)
    try:
        until_s = time.monotonic() + TIMEOUT_S
        while "] INFO ready" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until_s, log.read_text()
            time.sleep(0.05)
        yield served
    finally:
        process.kill()
        process.wait()
