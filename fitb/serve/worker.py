"""The worker of a model: prepares, searches and serialises texts in one thread.

A request crosses threads twice; the results of a turn return to the event loop in one call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import HTTPException

from fitb.base.errors import FitbError
from fitb.infer.blanks import MAX_LAYOUTS, Prepared, prepare
from fitb.infer.fill import search
from fitb.infer.passes import PassLimits, Steps, forward
from fitb.infer.request import FillRequest
from fitb.infer.scorer import Scorer
from fitb.serve import schema
from fitb.serve.metrics import Metrics
from fitb.serve.scheduler import QueueFull, Request, Scheduler, SearchJob, Stopped, TooLate
from fitb.serve.serve_config import ServeConfig

logger = logging.getLogger(__name__)
_POSITIONS = 128  # per forward pass; their logits over 30,522 tokens are 16 MB in fp32
_PATTERN_WEIGHT = 8192  # a compiled regex takes 0.5 MB, like a search of this many tokens
# Expected service time per text and per character, so that small requests come first.
_TEXT_S, _CHAR_S = 0.005, 1e-6
_HEAVY = 2  # texts of limits.text_tokens that may run at a time

Outcome = bytes | Exception


class _Asked:
    """The texts of one request and their results so far."""

    def __init__(self, texts: int, future: asyncio.Future[list[bytes]]) -> None:
        self.filled: list[bytes] = [b""] * texts
        self.future = future

    def leave(self, gone: asyncio.Future[object]) -> None:
        """Give up: the client disconnected."""
        self.settle(0, TooLate())

    def settle(self, number: int, outcome: Outcome) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(_as_http(number, outcome))
            return
        self.filled[number] = outcome
        if all(self.filled):
            self.future.set_result(self.filled)


@dataclass(eq=False, kw_only=True)
class _Text(SearchJob[bytes]):
    """One text of a request."""

    asked: _Asked
    number: int


class Worker:
    """Fills texts with one model, from the start of the server to its end.

    Args:
        name: name of the model in requests and metrics.
        scorer: the model; called by the worker's thread only.
        config: configuration of the server.
        metrics: Prometheus metrics.
        loop: event loop of the server.
    """

    def __init__(
        self,
        name: str,
        scorer: Scorer,
        config: ServeConfig,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.name = name
        self._scorer = scorer
        self._limits = config.limits
        self._pass = PassLimits(config.max_batch_tokens, _POSITIONS)
        self._loop = loop
        self._scheduler: Scheduler[bytes] = Scheduler(
            partial(forward, scorer),
            self._settle,
            metrics.batches_of(name),
            self._pass,
            most_texts=config.max_batch_texts,
            most_waiting=config.max_queue,
            most_weight=_HEAVY * config.limits.text_tokens,
        )
        metrics.watch_queue(name, self._scheduler.__len__)

    async def fill(
        self, requests: Sequence[FillRequest], deadline_s: float, gone: asyncio.Future[object]
    ) -> list[bytes]:
        """Fill the texts of a request; return each result as serialised by `schema.encoded`.

        Args:
            requests: texts with their constraints.
            deadline_s: time.monotonic() at which the request is given up, in seconds.
            gone: done when the client disconnects; the request is given up then too.
        Raises: HTTPException 422 if a text cannot be filled, 503 if the queue is full, 504 after
            the deadline.
        """
        asked = _Asked(len(requests), self._loop.create_future())
        texts: list[SearchJob[bytes]] = [
            _Text(partial(self._begin, request), asked=asked, number=number)
            for number, request in enumerate(requests)
        ]
        chars = sum(len(one.text) * one.search.top_k + sum(map(len, one.words)) for one in requests)
        expected_s = _TEXT_S * len(requests) + _CHAR_S * chars
        request = Request(texts, deadline_s, expected_s=expected_s)
        left_s = deadline_s - time.monotonic()
        late = self._loop.call_later(left_s, asked.settle, 0, TooLate())
        gone.add_done_callback(asked.leave)
        try:
            self._scheduler.submit(request)
            return await asked.future
        except (QueueFull, Stopped) as error:
            raise _as_http(0, error) from None
        finally:
            late.cancel()
            gone.remove_done_callback(asked.leave)
            request.wanted = False
            # The traceback of an exception holds this frame: a reference cycle would keep all
            # texts in memory until a full garbage collection.
            del asked, texts, request

    def close(self, timeout_s: float) -> None:
        """Refuse new requests, and finish the queue within `timeout_s` seconds."""
        if not self._scheduler.close(timeout_s):
            logger.warning("%s was not finished after %g s, stopping anyway", self.name, timeout_s)

    def _begin(self, request: FillRequest) -> tuple[int, Steps[bytes]]:
        """Prepare a text; return its weight (memory, in tokens) and its search."""
        prepared = prepare(self._scorer.tokenizer, request, self._scorer.max_length)
        tokens, most = work_tokens(prepared), self._limits.text_tokens
        if tokens > most:
            raise HTTPException(
                422,
                f"filling it would take {tokens:,} tokens through the model, at most {most:,};"
                " shorten the text, or lower beam, max_pieces or the number of blanks",
            )
        patterns = {constraint.regex for constraint in request.constraints if constraint.regex}
        return tokens + _PATTERN_WEIGHT * len(patterns), self._steps(prepared)

    def _steps(self, prepared: Prepared) -> Steps[bytes]:
        filled = yield from search(prepared, self._pass)
        yield None
        return schema.encoded(filled)

    def _settle(self, settled: Sequence[tuple[SearchJob[bytes], Outcome]]) -> None:
        try:
            self._loop.call_soon_threadsafe(_hand_over, settled)
        except RuntimeError:  # the loop is closed: no client is left
            if not self._loop.is_closed():
                raise


def work_tokens(prepared: Prepared) -> int:
    """Return an upper bound of the tokens through the model for a text, over all forward passes.

    Each layout is one row, and one row per beam entry for every further masked position; `refine`
    usually adds two passes over all of them. With too many layouts, the greedy search over the
    lengths of each blank comes on top.
    """
    masked, width = sum(max(group.rules) for group in prepared.groups), prepared.width
    refined = 2 * masked * width if prepared.request.search.order == "refine" else 0
    tokens = prepared.num_tokens * (1 + (masked - 1) * width + refined)
    if prepared.num_layouts > MAX_LAYOUTS:
        tokens += sum(
            sum(pieces) * prepared.length(pieces) for pieces in prepared.trials().values()
        )
    return tokens


def _hand_over(settled: Sequence[tuple[SearchJob[bytes], Outcome]]) -> None:
    for job, outcome in settled:
        assert isinstance(job, _Text)
        job.asked.settle(job.number, outcome)


def _as_http(number: int, error: Exception) -> Exception:
    """Turn an exception of a text into an HTTPException; unexpected ones are returned as is."""
    if isinstance(error, QueueFull):
        return HTTPException(503, "the queue is full; try again", {"retry-after": "1"})
    if isinstance(error, Stopped):
        return HTTPException(503, "the server is shutting down; try again", {"retry-after": "5"})
    if isinstance(error, TooLate):
        return HTTPException(504, "not filled before the deadline; send less, or try again later")
    if isinstance(error, HTTPException):
        return HTTPException(error.status_code, f"texts[{number}]: {error.detail}", error.headers)
    if isinstance(error, FitbError):
        return HTTPException(422, f"texts[{number}]: {error}")
    return error
