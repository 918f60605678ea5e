"""Configuration of `fitb serve`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from fitb.base.errors import ConfigError
from fitb.config.checks import check_range
from fitb.infer.request import Backend
from fitb.serve.request_limits import Limits


@dataclass(frozen=True)
class ServeConfig:
    """Fill blanks over HTTP, and on a web page.

    Args:
        model: Hugging Face folder or hub name with a trained MLM head.
        teacher: a second model to serve next to it, for comparison.
        backend: torch; or onnx or onnx-int8 if `fitb export` wrote that file, for both models.
        host: address to listen on; loopback is not reachable from other machines.
        port: port to listen on; 0 takes a free one.
        token_file: file with the bearer token that clients must send; the environment variable
            FITB_SERVE_TOKEN does the same.
        threads: threads of the model; 0 leaves the number to PyTorch.
        max_batch_texts: texts per forward pass; 1 turns batching off.
        max_batch_tokens: tokens per forward pass, padding included. Requests are scheduled between
            passes: with a lower number, short texts wait less behind long ones.
        max_queue: texts that may wait for the model.
        deadline_s: seconds until an unfinished request gets 504 and its computation stops.
        read_s: seconds in which a client must send its request, and read its response.
        stop_s: seconds after SIGTERM until unfinished requests are dropped.
        max_connections: open connections; a further one closes the oldest idle one.
        max_connections_per_address: open connections per client address; loopback, where a reverse
            proxy may run, is limited by max_connections alone.
        allowed_hosts: accepted names in the Host header, besides those of loopback. If empty: only
            loopback names on loopback without a token; else any name.
        limits: limits of one request.
    """

    model: str
    teacher: str | None = None
    backend: Backend = "torch"
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str | None = None
    threads: int = 0
    max_batch_texts: int = 64
    max_batch_tokens: int = 1024
    max_queue: int = 512
    deadline_s: float = 10.0
    read_s: float = 10.0
    stop_s: float = 20.0
    max_connections: int = 1000
    max_connections_per_address: int = 100
    allowed_hosts: list[str] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        counts = ("max_batch_texts", "max_batch_tokens", "max_queue")
        connections = ("max_connections", "max_connections_per_address")
        check_range("", self, *counts, *connections, low=1)
        check_range("", self, "threads", low=0)
        check_range("", self, "port", low=0, high=65_536)
        check_range("", self, "deadline_s", "read_s", "stop_s", low=0.001)
        if self.limits.texts > self.max_queue:
            raise ConfigError(
                f"limits.texts={self.limits.texts} is more than max_queue={self.max_queue}: a"
                " request of that size would never fit; raise max_queue"
            )

    @property
    def sources(self) -> dict[str, str]:
        """Folder or hub name of each model, by its name in requests."""
        return {"student": self.model} | ({"teacher": self.teacher} if self.teacher else {})

    @property
    def is_local(self) -> bool:
        """Whether the server is reachable from this machine only."""
        return self.host == "localhost" or is_loopback(self.host)


def is_loopback(address: str) -> bool:
    """Whether this is a loopback address; a host name is not."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return False
