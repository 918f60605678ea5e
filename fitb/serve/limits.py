"""Who may call, and how large a body may be: what is looked at before a request is parsed.

A client may send a body of any size. It is counted while it comes, whatever its Content-Length
says; in what time it must have come, `fitb.serve.connection` sees to.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

from fastapi import HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from fitb.base.errors import ConfigError
from fitb.serve.settings import ServeConfig, is_loopback

TOKEN_VARIABLE = "FITB_SERVE_TOKEN"
_LINGER_S = 2.0


async def read_body(
    request: Request, most_bytes: int, grow: Callable[[int], None] = lambda size: None
) -> bytes:
    """Return the body of a request; how long it may take is the connection's affair.

    Args:
        grow: told its size as it comes; may raise.
    Raises: HTTPException with 413 where it is larger, with 408 where it was cut off.
    """
    claimed = request.headers.get("content-length", "0")
    parts, body = request.stream(), bytearray()
    try:
        if not claimed.isdigit() or int(claimed) <= most_bytes:
            async for part in parts:
                body += part
                grow(len(body))
                if len(body) > most_bytes:
                    break
            else:
                return bytes(body)
        body.clear()
        if "expect" not in request.headers:  # else it waits to be told to send
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_discard(parts), _LINGER_S)
    except ClientDisconnect:
        reason = "the request had not come when its connection was closed"
        raise HTTPException(408, reason) from None
    reason = f"the body is larger than {most_bytes:,} bytes; send fewer or shorter texts"
    raise HTTPException(413, reason, {"connection": "close"})


async def _discard(parts: AsyncIterator[bytes]) -> None:
    """Read on for a moment: who is cut off while sending may never see why."""
    async for _ in parts:
        pass


def check_media_type(headers: Mapping[str, str]) -> None:
    """Refuse, with 415, what does not call itself plain JSON.

    A page of another site can send forms and text to this server, but not this type.
    """
    kind, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise HTTPException(415, "Content-Type is not application/json in UTF-8")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "Content-Encoding is not identity; send the body as it is")


class Token(HTTPBearer):
    """A bearer token, kept as its digest only; a dependency of the routes that want it.

    Args:
        secret: what clients must send.
    """

    def __init__(self, secret: str) -> None:
        super().__init__(scheme_name="token", auto_error=False)
        self._digest = hashlib.sha256(secret.encode()).digest()

    async def __call__(self, request: HTTPConnection) -> HTTPAuthorizationCredentials:
        """Refuse, with 401, a request that does not bear it; takes the same time for any."""
        given = await super().__call__(request)
        digest = hashlib.sha256(given.credentials.encode() if given else b"").digest()
        if given is None or not hmac.compare_digest(digest, self._digest):
            raise HTTPException(
                401,
                "a token is required; send it as `Authorization: Bearer TOKEN`",
                self.make_authenticate_headers(),
            )
        return given


class AllowedHosts:
    """Names by which a server may be called, in any case and with any port.

    A page of another site can have its own name point to this machine (DNS rebinding), and is then
    of one origin with the server; but its requests bear that name.

    Args:
        names: besides localhost and addresses of loopback.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {"localhost", *map(_without_port, names)}

    def check(self, headers: Headers) -> None:
        """Refuse, with 421, a request whose Host is another one, or missing."""
        hosts = list(map(_without_port, headers.getlist("host")))
        if not hosts or not all(host in self._names or is_loopback(host) for host in hosts):
            raise HTTPException(
                421,
                "the Host header is no name of this server; call it localhost, or start it with"
                " --allowed_hosts+=NAME",
                {"connection": "close"},
            )


def _without_port(host: str) -> str:
    """Return a host in lower case, an address without its brackets."""
    name = re.sub(r":\d*$", "", host.strip().lower())
    return name.rstrip(".") if "[" not in name else name.strip("[]")


def hosts_of(config: ServeConfig, has_token: bool) -> AllowedHosts | None:
    """Return the names by which a server may be called; None: any."""
    if config.allowed_hosts or (config.is_local and not has_token):
        return AllowedHosts(config.allowed_hosts)
    return None


def read_token(path: str | None, environ: Mapping[str, str]) -> Token | None:
    """Return the token of a file or of the environment; None where there is neither.

    Raises: ConfigError where both are given, or what is given is no token.
    """
    secret, where = environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    if path is not None:
        if secret is not None:
            raise ConfigError(f"token_file and {TOKEN_VARIABLE} are both set; unset one")
        where = f"token_file={path!r}"
        try:
            secret = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read: {type(error).__name__}") from None
    if secret is None:
        return None
    if not secret or not all("!" <= character <= "~" for character in secret):
        raise ConfigError(f"{where} holds no token; expected printable ASCII without spaces")
    return Token(secret)
