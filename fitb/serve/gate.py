"""The outermost layer: counts and times each request, and answers where something goes wrong."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

from fitb.serve.endpoint import PATH, FillEndpoint, send_json
from fitb.serve.limits import Hosts
from fitb.serve.metrics import Metrics
from fitb.serve.refusal import Refusal

logger = logging.getLogger(__name__)
_CLOSE = (b"connection", b"close")


class Gate:
    """An ASGI application around others.

    Args:
        fill: answers requests to its path.
        others: answers all others.
        metrics: told of every request.
        hosts: by which it may be called; None: any.
        stopping: whether every answer asks its client to leave.
    """

    def __init__(
        self,
        fill: FillEndpoint,
        others: Any,
        metrics: Metrics,
        hosts: Hosts | None,
        stopping: Callable[[], bool],
    ) -> None:
        self._fill = fill
        self._others = others
        self._metrics = metrics
        self._hosts = hosts
        self._stopping = stopping

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._fill if scope["path"] == PATH else self._others
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
                self._hosts.check(scope["headers"])
            await app(scope, receive, marked)
        except Refusal as refusal:
            await send_json(
                marked, {"error": refusal.reason}, status=refusal.status, headers=refusal.headers
            )
        except asyncio.CancelledError:
            if not status:
                await send_json(marked, {"error": "the server stops; try again"}, status=503)
        except Exception as error:
            if not status:
                await send_json(
                    marked, {"error": "the server failed; its log says where"}, status=500
                )
            _log(error)
        finally:
            self._metrics.in_flight.dec()
            self._metrics.answered(scope["path"], status, time.perf_counter() - began_s)


def _log(error: Exception) -> None:
    """Say what was raised and where; its message may hold a user's text."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    logger.error("a request failed with %s at %s", type(error).__name__, where)
