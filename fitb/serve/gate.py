"""The outermost layer: counts and times every request, and answers for whatever goes wrong inside.

Plain ASGI, because it is passed by every request.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

import orjson

from fitb.serve.metrics import Metrics

logger = logging.getLogger(__name__)
_CLOSE = (b"connection", b"close")


class Gate:
    """An ASGI application around another.

    Args:
        app: what answers.
        metrics: told of every request.
        stopping: whether every answer asks its client to leave.
    """

    def __init__(self, app: Any, metrics: Metrics, stopping: Callable[[], bool]) -> None:
        self._app = app
        self._metrics = metrics
        self._stopping = stopping

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.perf_counter(), 0

        async def marked(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._stopping():
                    message["headers"] = [*message["headers"], _CLOSE]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, marked)
        except asyncio.CancelledError:
            if not status:
                await _answer(marked, 503, "the server stops; try again")
        except Exception as error:
            if not status:
                await _answer(marked, 500, "the server failed; its log says where")
            _log(error)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.answered(scope["path"], status, time.perf_counter() - began_s)


async def _answer(send: Any, status: int, reason: str) -> None:
    body = orjson.dumps({"error": reason})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        _CLOSE,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _log(error: Exception) -> None:
    """Say what was raised and where; its message may hold a user's text."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    logger.error("a request failed with %s at %s", type(error).__name__, where)
