"""POST /v1/fill: from the head of a request to the end of its answer.

Plain ASGI, beside FastAPI: a small model fills a text in the time that FastAPI takes to route it,
to solve its dependencies and to validate what was made here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import BaseModel

from fitb.serve import schema
from fitb.serve.config import ServeConfig
from fitb.serve.filler import Filler
from fitb.serve.limits import Token, check_media_type, read_body
from fitb.serve.refusal import Refusal

PATH = "/v1/fill"


class FillEndpoint:
    """An ASGI application for one path.

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

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            answer = await self._answer(scope, receive)
        except Refusal as refusal:
            await send_json(
                send, {"error": refusal.reason}, status=refusal.status, headers=refusal.headers
            )
        else:
            await send_json(send, answer)

    async def _answer(self, scope: Any, receive: Any) -> dict[str, Any]:
        deadline_s = time.monotonic() + self._config.deadline_s
        if scope["method"] != "POST":
            raise Refusal(405, f"{PATH} takes POST alone", {"allow": "POST"})
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        if self._token:
            self._token.check(headers)
        check_media_type(headers)
        limits = self._config.limits
        body = await read_body(receive, headers, limits.body_bytes)
        name, requests = schema.read_request(self._model, body, limits)
        if name not in self._fillers:
            raise Refusal(503, "the model is being loaded; try again", {"retry-after": "5"})
        filled = await self._fillers[name].fill(requests, deadline_s)
        return schema.response(name, filled)


async def send_json(
    send: Any, content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """Send an answer of JSON over ASGI."""
    body = orjson.dumps(content)
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    head += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
