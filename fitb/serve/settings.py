"""What `fitb serve` can be told, and the bounds of what its users may ask."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, fields
from typing import Any

from fitb.base.errors import ConfigError
from fitb.infer.request import Backend


@dataclass(frozen=True)
class Limits:
    """What one request may ask.

    Args:
        body_bytes: of its body.
        texts: in it.
        chars: of a text, and of all candidates, prefixes and banned words of a text together.
        blanks: of a text.
        beam: partial fillings kept.
        max_pieces: pieces of a blank of unknown length.
        top_k: fillings returned.
        candidates: of a text, over all its constraints; and as many banned words.
        regex_chars: of a regular expression.
        text_tokens: tokens that filling a text takes through the model at most, all passes of the
            search together.
        answer_chars: of all sentences of an answer together.
    """

    body_bytes: int = 1_000_000
    texts: int = 64
    chars: int = 20_000
    blanks: int = 16
    beam: int = 16
    max_pieces: int = 8
    top_k: int = 50
    candidates: int = 1000
    regex_chars: int = 200
    text_tokens: int = 262_144
    answer_chars: int = 1_000_000

    def __post_init__(self) -> None:
        _check_at_least_one(self)


@dataclass(frozen=True)
class ServeConfig:
    """Fill blanks over HTTP, and on a page for people.

    Args:
        model: Hugging Face folder or hub name with a trained MLM head.
        teacher: another one beside it, for comparison.
        backend: torch; onnx or onnx-int8 where `fitb export` wrote that file, for both models.
        host: address to listen at; other machines reach only others than loopback.
        port: to listen at; 0 takes a free one.
        token_file: file that holds the bearer token which clients must send; FITB_SERVE_TOKEN in
            the environment does the same.
        threads: threads of the model; 0 leaves the number to PyTorch.
        max_batch_texts: texts that share a forward pass; 1 handles each alone.
        max_batch_tokens: tokens of a forward pass, padding included. Between two passes the model
            is free for others: with fewer, short texts wait less while long ones are filled.
        max_queue: texts that may wait for the model.
        deadline_s: an answer that takes longer is given up, and no longer computed.
        read_s: a client that takes longer to send its request, or to take its answer, is cut off.
        stop_s: after SIGTERM, what is not answered by then is given up.
        max_connections: open at a time; for further ones the oldest that only wait are closed.
        max_connections_per_address: the same of one client. Loopback, where a reverse proxy may
            stand, is bounded by max_connections alone.
        allowed_hosts: names by which clients may call the server (their Host header), besides those
            of loopback. If empty: on loopback without a token, those alone; else any.
        limits: of one request.
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
        _check_at_least_one(self, but=("port", "threads"))
        for name in ("deadline_s", "read_s", "stop_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}; more than 0")
        if not 0 <= self.port < 65_536:
            raise ConfigError(f"port={self.port}; from 0 to 65535, where 0 takes a free one")
        if self.threads < 0:
            raise ConfigError(f"threads={self.threads}; at least 0, where 0 leaves it to PyTorch")
        if self.limits.texts > self.max_queue:
            raise ConfigError(
                f"limits.texts={self.limits.texts} is more than max_queue={self.max_queue}; such a"
                " request would never fit, raise max_queue"
            )

    @property
    def sources(self) -> dict[str, str]:
        """Folder or hub name of each model, by the name that requests give it."""
        return {"student": self.model} | ({"teacher": self.teacher} if self.teacher else {})

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host == "localhost" or is_loopback(self.host)


def is_loopback(address: str) -> bool:
    """Whether this is an address of loopback."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return False


def _check_at_least_one(config: Any, but: tuple[str, ...] = ()) -> None:
    for key in fields(config):
        value = getattr(config, key.name)
        if isinstance(value, int) and key.name not in but and value < 1:
            raise ConfigError(f"{key.name}={value}; at least 1")
