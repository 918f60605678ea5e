"""A request that is not served: its status, and why, in words for whoever sent it."""

from __future__ import annotations

from collections.abc import Mapping


class Refusal(Exception):  # noqa: N818
    """An answer other than 200.

    Args:
        status: of HTTP.
        reason: what was wrong, what is expected, what to do; goes to the client, never to a log.
        headers: of the answer.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})
