"""Checks before a request is parsed: body size, media type, bearer token and Host header.

The size of a body is counted while it is received, whatever its Content-Length claims; its time
limit is in `fitb.serve.connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Callable, Container, Mapping
from pathlib import Path

from fastapi import HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from fitb.base.errors import ConfigError
from fitb.serve.serve_config import ServeConfig, is_loopback

TOKEN_VARIABLE = "FITB_SERVE_TOKEN"
_LINGER_S = 2.0


async def read_body(
    request: Request, most_bytes: int, grow: Callable[[int], None] = lambda size: None
) -> bytes:
    """Return the body of a request.

    Args:
        request: the request.
        most_bytes: largest allowed size in bytes.
        grow: called with the size received so far, in bytes; may raise.
    Raises: HTTPException 413 if the body is larger, 408 if the connection closed before its end.
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
        if "expect" not in request.headers:  # else the client waits for 100 Continue
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_discard(parts), _LINGER_S)
    except ClientDisconnect:
        reason = "the connection was closed before the body was complete"
        raise HTTPException(408, reason) from None
    reason = f"the body is larger than {most_bytes:,} bytes; send fewer or shorter texts"
    raise HTTPException(413, reason, {"connection": "close"})


async def _discard(parts: AsyncIterator[bytes]) -> None:
    """Read and drop the rest: a client that is cut off while sending may not see the response."""
    async for _ in parts:
        pass


def check_media_type(headers: Mapping[str, str]) -> None:
    """Raise HTTPException 415 unless the body is plain application/json.

    This prevents cross-site requests: a page of another origin can send forms and text, not JSON.
    """
    kind, _, parameters = headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise HTTPException(415, "Content-Type is not application/json in UTF-8")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "Content-Encoding is not identity; send the body uncompressed")


class Token(HTTPBearer):
    """Bearer token authentication as a FastAPI dependency; only the digest is kept.

    Args:
        secret: token that clients must send.
    """

    def __init__(self, secret: str) -> None:
        super().__init__(scheme_name="token", auto_error=False)
        self._digest = hashlib.sha256(secret.encode()).digest()

    async def __call__(self, request: HTTPConnection) -> HTTPAuthorizationCredentials:
        """Raise HTTPException 401 for another token; compares in constant time."""
        given = await super().__call__(request)
        digest = hashlib.sha256(given.credentials.encode() if given else b"").digest()
        if given is None or not hmac.compare_digest(digest, self._digest):
            raise HTTPException(
                401,
                "a token is required; send it as `Authorization: Bearer TOKEN`",
                self.make_authenticate_headers(),
            )
        return given


def check_host(headers: Headers, names: Container[str]) -> None:
    """Raise HTTPException 421 if the Host header, less its port, is missing or another name.

    This prevents DNS rebinding: a page of another site whose name resolves to this machine is of
    one origin with the server, but its requests carry that name.

    Args:
        headers: headers of the request.
        names: allowed names besides loopback addresses, see `hosts_of`.
    """
    hosts = list(map(_without_port, headers.getlist("host")))
    if not hosts or not all(host in names or is_loopback(host) for host in hosts):
        raise HTTPException(
            421,
            "the Host header is not a name of this server; use localhost, or start the server"
            " with --allowed_hosts+=NAME",
            {"connection": "close"},
        )


def _without_port(host: str) -> str:
    """Return a host in lower case without its port, an IPv6 address without brackets."""
    name = re.sub(r":\d*$", "", host.strip().lower())
    return name.rstrip(".") if "[" not in name else name.strip("[]")


def hosts_of(config: ServeConfig, has_token: bool) -> frozenset[str] | None:
    """Return the allowed names of a server besides loopback addresses; None allows any."""
    if config.allowed_hosts or (config.is_local and not has_token):
        return frozenset({"localhost", *map(_without_port, config.allowed_hosts)})
    return None


def read_token(path: str | None, environ: Mapping[str, str]) -> Token | None:
    """Return the token from a file or from the environment; None if neither is set.

    Args:
        path: file with the token, or None.
        environ: environment variables.
    Raises: ConfigError if both are set, the file cannot be read, or its content is no token.
    """
    secret, where = environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    if path is not None:
        if secret is not None:
            raise ConfigError(f"token_file and {TOKEN_VARIABLE} are both set; unset one")
        where = f"token_file={path!r}"
        try:
            secret = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {where}: {type(error).__name__}") from None
    if secret is None:
        return None
    if not secret or not all("!" <= character <= "~" for character in secret):
        raise ConfigError(f"{where} is not a token; expected printable ASCII without spaces")
    return Token(secret)
