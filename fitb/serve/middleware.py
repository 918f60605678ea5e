"""Outermost ASGI middleware: metrics, Host check, error responses, `connection: close`."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fitb.serve.metrics import Metrics
from fitb.serve.request_checks import check_host

logger = logging.getLogger(__name__)
_CLOSE = (b"connection", b"close")


async def refused(request: Request, error: Exception) -> Response:
    """Turn an HTTPException into a JSON response with its reason."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def failed(request: Request, error: Exception) -> Response:
    """Return 500 for an unexpected exception."""
    return JSONResponse({"error": "internal server error; see the log of the server"}, 500)


@dataclass(frozen=True)
class Middleware:
    """ASGI middleware.

    Exceptions of the application are logged without their message, which may contain user text.

    Args:
        app: ASGI application.
        metrics: metrics that count every request.
        hosts: allowed Host headers, see `hosts_of`; None allows any.
        stopping: returns whether responses must close their connection.
    """

    app: Any
    metrics: Metrics
    hosts: frozenset[str] | None
    stopping: Callable[[], bool]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        began_s, status = time.perf_counter(), 0

        async def marked(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.stopping():
                    message["headers"] = [*message["headers"], _CLOSE]
            await send(message)

        self.metrics.in_flight.inc()
        try:
            if self.hosts is not None:
                check_host(Headers(scope=scope), self.hosts)
            await self.app(scope, receive, marked)
        except HTTPException as error:
            await (await refused(Request(scope), error))(scope, receive, marked)
        except asyncio.CancelledError:
            if not status:
                stopped = JSONResponse({"error": "the server is shutting down; try again"}, 503)
                await stopped(scope, receive, marked)
        except Exception as error:  # the 500 is sent already
            _log(error)
        finally:
            self.metrics.in_flight.dec()
            self.metrics.answered(scope["path"], status, time.perf_counter() - began_s)


def _log(error: Exception) -> None:
    """Log the type of an exception and the last frames."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    logger.error("a request failed with %s at %s", type(error).__name__, where)
