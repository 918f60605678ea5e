"""POST /v1/fill: from the head of a request to the end of its answer.

Plain ASGI, beside FastAPI: a small model fills a text in the time that FastAPI takes to route it,
to solve its dependencies and to validate what was made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
from pydantic import BaseModel

from fitb.infer.request import FillRequest
from fitb.serve import schema
from fitb.serve.config import ServeConfig
from fitb.serve.filler import Filler
from fitb.serve.limits import Token, check_media_type, read_body
from fitb.serve.refusal import Refusal

PATH = "/v1/fill"
_SMALL_BYTES = 65_536  # bodies up to this size are only bounded by the number of connections
_LARGE_BODIES = 16  # of limits.body_bytes that may be held at a time: parsed, ten times as much


class FillEndpoint:
    """An ASGI application for one path; raises Refusal where it is not served.

    Args:
        model: of the body of a request.
        fillers: by name of their model; empty until these are loaded.
    """

    def __init__(
        self,
        config: ServeConfig,
        token: Token | None,
        model: type[BaseModel],
        fillers: Mapping[str, Filler],
    ) -> None:
        self._config = config
        self._token = token
        self._model = model
        self._fillers = fillers
        self._parsing = asyncio.Lock()
        self._held_bytes = 0  # of large bodies

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await _send(send, await self._answer(scope, receive))

    async def _answer(self, scope: Any, receive: Any) -> bytes:
        deadline_s = time.monotonic() + self._config.deadline_s
        if scope["method"] != "POST":
            raise Refusal(405, f"{PATH} takes POST alone", {"allow": "POST"})
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        if self._token:
            self._token.check(headers)
        check_media_type(headers)
        with self._room_for_body() as grow:
            body = await read_body(receive, headers, self._config.limits.body_bytes, grow)
            name, requests = await self._read(body)
            del body
            if name not in self._fillers:
                raise Refusal(503, "the model is being loaded; try again", {"retry-after": "5"})
            gone = asyncio.ensure_future(receive())  # nothing more comes but the end
            try:
                filled = await self._fillers[name].fill(requests, deadline_s, gone)
            finally:
                gone.cancel()
        return schema.response(name, filled)

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

        Raises: Refusal with 503.
        """
        most, mine = _LARGE_BODIES * self._config.limits.body_bytes, 0

        def grow(size: int) -> None:
            nonlocal mine
            if size > _SMALL_BYTES:
                if self._held_bytes - mine + size > most:
                    raise Refusal(
                        503, "too many large requests at a time; try again", {"retry-after": "1"}
                    )
                self._held_bytes += size - mine
                mine = size

        try:
            yield grow
        finally:
            self._held_bytes -= mine


async def send_json(
    send: Any, content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """Send an answer of JSON over ASGI."""
    await _send(send, orjson.dumps(content), status, headers)


async def _send(
    send: Any, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    head += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
