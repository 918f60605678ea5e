"""A body read within its bounds, and a token compared: what stands before a request is looked at.

A client may send a body of any size. It is counted while it comes, whatever its Content-Length
says; in what time it must have come, `fitb.serve.connection` sees to.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fitb.errors import ConfigError
from fitb.serve.config import ServeConfig, is_loopback
from fitb.serve.refusal import Refusal

TOKEN_VARIABLE = "FITB_SERVE_TOKEN"
_LINGER_S = 2.0

Receive = Callable[[], Awaitable[Any]]


async def read_body(
    receive: Receive,
    headers: Mapping[str, str],
    most_bytes: int,
    grow: Callable[[int], None] = lambda size: None,
) -> bytes:
    """Return the body of a request; how long it may take is the connection's affair.

    Args:
        grow: told its size as it comes; may raise.
    Raises: Refusal with 413 where it is larger, with 408 where it was cut off.
    """
    claimed = headers.get("content-length", "0")
    fits = not claimed.isdigit() or int(claimed) <= most_bytes
    if not fits and "expect" in headers:  # it waits to be told to send
        raise _too_large(most_bytes)
    body, more = bytearray(), True
    while fits and more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(408, "the request had not come when its connection was closed")
        body += message.get("body", b"")
        fits = len(body) <= most_bytes
        grow(len(body))
        more = message.get("more_body", False)
    if not fits:
        del body
        if not more:
            raise _too_large(most_bytes)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_discard(receive), _LINGER_S)
        raise _too_large(most_bytes)
    return bytes(body)


async def _discard(receive: Receive) -> None:
    """Read on for a moment: who is cut off while sending may never see why."""
    while (await receive()).get("more_body", False):
        pass


def _too_large(most_bytes: int) -> Refusal:
    reason = f"the body is larger than {most_bytes:,} bytes; send fewer or shorter texts"
    return Refusal(413, reason, {"connection": "close"})


def check_media_type(headers: Mapping[str, str]) -> None:
    """Refuse, with 415, what does not call itself plain JSON.

    A page of another site can send forms and text to this server, but not this type.
    """
    kind, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise Refusal(415, "Content-Type is not application/json in UTF-8")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "Content-Encoding is not identity; send the body as it is")


class Token:
    """A bearer token, kept as its digest only.

    Args:
        secret: what clients must send.
    """

    def __init__(self, secret: str) -> None:
        self._digest = hashlib.sha256(secret.encode()).digest()

    def check(self, headers: Mapping[str, str]) -> None:
        """Refuse, with 401, a request that does not bear it; takes the same time for any."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        if not hmac.compare_digest(digest, self._digest) or scheme.lower() != "bearer":
            raise Refusal(
                401,
                "a token is required; send it as `Authorization: Bearer TOKEN`",
                {"www-authenticate": "Bearer"},
            )


class Hosts:
    """Names by which a server may be called, in any case and with any port.

    A page of another site can have its own name point to this machine (DNS rebinding), and is then
    of one origin with the server; but its requests bear that name.

    Args:
        names: besides localhost and addresses of loopback.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {"localhost", *(_without_port(name.encode()) for name in names)}

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Refuse, with 421, a request whose Host is another one, or missing."""
        hosts = [_without_port(value) for name, value in headers if name == b"host"]
        if not hosts or not all(host in self._names or is_loopback(host) for host in hosts):
            raise Refusal(
                421,
                "the Host header is no name of this server; call it localhost, or start it with"
                " --allowed_hosts+=NAME",
                {"connection": "close"},
            )


def _without_port(host: bytes) -> str:
    """Return a host in lower case, an address without its brackets."""
    name = re.sub(r":\d*$", "", host.decode("latin-1").strip().lower())
    return name.rstrip(".") if "[" not in name else name.strip("[]")


def hosts_of(config: ServeConfig, has_token: bool) -> Hosts | None:
    """Return the names by which a server may be called; None: any."""
    if config.allowed_hosts or (config.is_local and not has_token):
        return Hosts(config.allowed_hosts)
    return None


def read_token(path: str | None, environ: Mapping[str, str]) -> Token | None:
    """Return the token of a file or of the environment; None where there is neither.

    Raises: ConfigError where both are given, or what is given is no token.
    """
    secret = environ.get(TOKEN_VARIABLE)
    if path is None and secret is None:
        return None
    if path is not None and secret is not None:
        raise ConfigError(f"token_file and {TOKEN_VARIABLE} are both set; unset one")
    if path is not None:
        try:
            secret = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = type(error).__name__
            raise ConfigError(f"token_file={path!r} cannot be read: {reason}") from None
    assert secret is not None
    if not secret or not all("!" <= character <= "~" for character in secret):
        where = TOKEN_VARIABLE if path is None else f"token_file={path!r}"
        raise ConfigError(f"{where} holds no token; expected printable ASCII without spaces")
    return Token(secret)
