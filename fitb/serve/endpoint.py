"""POST /v1/fill: authentication, limits, parsing, and the response.

FastAPI only documents this plain Starlette route: it would read a body of any size before it checks
the token, and its overhead is as large as the time in which a small model fills a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import HTTPException
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from fitb.infer.request import FillRequest
from fitb.serve import schema
from fitb.serve.request_checks import Token, check_media_type, read_body
from fitb.serve.serve_config import ServeConfig
from fitb.serve.worker import Worker

PATH = "/v1/fill"
_SMALL_BYTES = 65_536  # smaller bodies are limited by the number of connections alone
_LARGE_BODIES = 16  # bodies of limits.body_bytes in memory at a time; parsed, ten times as much


@dataclass
class FillEndpoint:
    """The endpoint.

    Args:
        config: configuration of the server.
        token: bearer token that clients must send; None for no authentication.
        model: pydantic model of the request body.
        workers: worker of each model by name; empty until the models are loaded.
    """

    config: ServeConfig
    token: Token | None
    model: type[BaseModel]
    workers: Mapping[str, Worker]
    _parsing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _held_bytes: int = 0  # bytes of all large bodies in memory

    async def fill(self, request: Request) -> Response:
        """Fill the texts of a request.

        Raises: HTTPException with the status of a request that is not served.
        """
        deadline_s = time.monotonic() + self.config.deadline_s
        if self.token:
            await self.token(request)
        check_media_type(request.headers)
        with self._room_for_body() as grow:
            body = await read_body(request, self.config.limits.body_bytes, grow)
            name, texts = await self._read(body)
            del body
            if name not in self.workers:
                raise HTTPException(503, "the models are loading; try again", {"retry-after": "5"})
            # The body is complete: the next message is the disconnect.
            gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
            try:
                filled = await self.workers[name].fill(texts, deadline_s, gone)
            finally:
                gone.cancel()
        return Response(schema.response(name, filled), media_type="application/json")

    async def _read(self, body: bytes) -> tuple[str, list[FillRequest]]:
        """Parse a body; large ones (up to 50 ms) get at most half of the event loop's time."""
        if len(body) <= _SMALL_BYTES:
            return schema.read_request(self.model, body, self.config.limits)
        async with self._parsing:
            began_s = time.monotonic()
            try:
                return schema.read_request(self.model, body, self.config.limits)
            finally:
                await asyncio.sleep(time.monotonic() - began_s)

    @contextlib.contextmanager
    def _room_for_body(self) -> Iterator[Callable[[int], None]]:
        """Yield a callback for the growing size of a body, in bytes.

        The callback raises HTTPException 503 if all large bodies together exceed the limit.
        """
        most, mine = _LARGE_BODIES * self.config.limits.body_bytes, 0

        def grow(size: int) -> None:
            nonlocal mine
            if size > _SMALL_BYTES:
                if self._held_bytes - mine + size > most:
                    raise HTTPException(
                        503, "too many large requests; try again", {"retry-after": "1"}
                    )
                self._held_bytes += size - mine
                mine = size

        try:
            yield grow
        finally:
            self._held_bytes -= mine
