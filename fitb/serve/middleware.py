"""The outermost layer: counts and times each request, and answers where something goes wrong."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fitb.serve.limits import AllowedHosts
from fitb.serve.metrics import Metrics

logger = logging.getLogger(__name__)
_CLOSE = (b"connection", b"close")


async def refused(request: Request, error: Exception) -> Response:
    """Say what was refused and why: a request to fill, an unknown path, a method."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def failed(request: Request, error: Exception) -> Response:
    """Say that it was not the client's fault."""
    return JSONResponse({"error": "the server failed; its log says where"}, 500)


class Middleware:
    """An ASGI application around another.

    Args:
        app: answers requests; what it fails with is logged without its message, which may hold a
            user's text.
        metrics: told of every request.
        hosts: by which it may be called; None: any.
        stopping: whether every answer asks its client to leave.
    """

    def __init__(
        self,
        app: Any,
        metrics: Metrics,
        hosts: AllowedHosts | None,
        stopping: Callable[[], bool],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._hosts = hosts
        self._stopping = stopping

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
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
            if self._hosts:
                self._hosts.check(Headers(scope=scope))
            await self._app(scope, receive, marked)
        except HTTPException as error:
            await (await refused(Request(scope), error))(scope, receive, marked)
        except asyncio.CancelledError:
            if not status:
                stopped = JSONResponse({"error": "the server stops; try again"}, 503)
                await stopped(scope, receive, marked)
        except Exception as error:  # answered already
            _log(error)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.answered(scope["path"], status, time.perf_counter() - began_s)


def _log(error: Exception) -> None:
    """Say what was raised and where."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    logger.error("a request failed with %s at %s", type(error).__name__, where)
