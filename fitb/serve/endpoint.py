"""POST /v1/fill: from the head of a request to the end of its answer.

A plain route, which FastAPI describes and does not serve: it would read a body of any size, before
the token is looked at, and a small model fills a text in the time that it takes for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import HTTPException
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from fitb.infer.request import FillRequest
from fitb.serve import schema
from fitb.serve.limits import Token, check_media_type, read_body
from fitb.serve.settings import ServeConfig
from fitb.serve.worker import Worker

PATH = "/v1/fill"
_SMALL_BYTES = 65_536  # bodies up to this size are only bounded by the number of connections
_LARGE_BODIES = 16  # of limits.body_bytes that may be held at a time: parsed, ten times as much


class FillEndpoint:
    """Answers requests to fill texts.

    Args:
        model: of the body of a request.
        workers: by name of their model; empty until these are loaded.
    """

    def __init__(
        self,
        config: ServeConfig,
        token: Token | None,
        model: type[BaseModel],
        workers: Mapping[str, Worker],
    ) -> None:
        self._config = config
        self._token = token
        self._model = model
        self._workers = workers
        self._parsing = asyncio.Lock()
        self._held_bytes = 0  # of large bodies

    async def fill(self, request: Request) -> Response:
        """Raises: HTTPException where it is not served."""
        deadline_s = time.monotonic() + self._config.deadline_s
        if self._token:
            await self._token(request)
        check_media_type(request.headers)
        with self._room_for_body() as grow:
            body = await read_body(request, self._config.limits.body_bytes, grow)
            name, texts = await self._read(body)
            del body
            if name not in self._workers:
                raise HTTPException(
                    503, "the model is being loaded; try again", {"retry-after": "5"}
                )
            # Nothing more comes but the end.
            gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
            try:
                filled = await self._workers[name].fill(texts, deadline_s, gone)
            finally:
                gone.cancel()
        return Response(schema.response(name, filled), media_type="application/json")

    async def _read(self, body: bytes) -> tuple[str, list[FillRequest]]:
        """Parse a body; large ones, of up to 50 ms, have half of the event loop at most."""
        if len(body) <= _SMALL_BYTES:
            return schema.read_request(self._model, body, self._config.limits)
        async with self._parsing:
            began_s = time.monotonic()
            try:
                return schema.read_request(self._model, body, self._config.limits)
            finally:
                await asyncio.sleep(time.monotonic() - began_s)

    @contextlib.contextmanager
    def _room_for_body(self) -> Iterator[Callable[[int], None]]:
        """Yield what is told the size of a body while it grows, and raises where there is no room.

        Raises: HTTPException with 503.
        """
        most, mine = _LARGE_BODIES * self._config.limits.body_bytes, 0

        def grow(size: int) -> None:
            nonlocal mine
            if size > _SMALL_BYTES:
                if self._held_bytes - mine + size > most:
                    raise HTTPException(
                        503, "too many large requests at a time; try again", {"retry-after": "1"}
                    )
                self._held_bytes += size - mine
                mine = size

        try:
            yield grow
        finally:
            self._held_bytes -= mine
