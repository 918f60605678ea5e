"""From requests to filled texts, encoded: prepared, searched and written down by one thread.

A request crosses threads twice, and the answers of a turn come back to the event loop in one call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial

from fastapi import HTTPException

from fitb.base.errors import FitbError
from fitb.infer.blanks import MAX_LAYOUTS, Prepared, prepare
from fitb.infer.fill import search
from fitb.infer.passes import PassLimits, Steps, forward
from fitb.infer.request import FillRequest, constraint_chars
from fitb.infer.scorer import Scorer
from fitb.serve import schema
from fitb.serve.metrics import Metrics
from fitb.serve.scheduler import Bounds, QueueFull, Request, Scheduler, SearchJob, Stopped, TooLate
from fitb.serve.settings import ServeConfig

logger = logging.getLogger(__name__)
_POSITIONS = 128  # of a forward pass: of 30,522 logits in fp32 16 MB
_PATTERN_WEIGHT = 8192  # a compiled regex takes half a megabyte, as a search of as many tokens may
# What a text and a character count beforehand, so that small requests go first.
_TEXT_S, _CHAR_S = 0.005, 1e-6
_HEAVY = 2  # texts of limits.text_tokens that may be under way

Outcome = bytes | Exception


class _Asked:
    """Texts of one request, and what became of them so far."""

    def __init__(self, texts: int, future: asyncio.Future[list[bytes]]) -> None:
        self.filled: list[bytes] = [b""] * texts
        self.open = texts
        self.future = future

    def leave(self, gone: asyncio.Future[object]) -> None:
        """Give up: the client has gone."""
        self.settle(0, TooLate())

    def settle(self, number: int, outcome: Outcome) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(_as_http(number, outcome))
            return
        self.filled[number] = outcome
        self.open -= 1
        if not self.open:
            self.future.set_result(self.filled)


class _Text(SearchJob[bytes]):
    """One text of a request."""

    def __init__(
        self, begin: partial[tuple[int, Steps[bytes]]], asked: _Asked, number: int
    ) -> None:
        super().__init__(begin)
        self.asked = asked
        self.number = number


class Worker:
    """Fills blanks with one model; lives as long as the server.

    Args:
        name: of the model in requests and metrics.
        scorer: called by one thread alone.
        loop: of the server.
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
            Bounds(
                config.max_batch_texts,
                self._pass,
                config.max_queue,
                _HEAVY * config.limits.text_tokens,
            ),
            lambda settled: self._to_loop(_settle, settled),
            metrics.batches_of(name),
        )
        metrics.watch_queue(name, self._scheduler.__len__)

    async def fill(
        self, requests: Sequence[FillRequest], deadline_s: float, gone: asyncio.Future[object]
    ) -> list[bytes]:
        """Fill texts, in turn with those of others; return what `schema.encoded` makes of each.

        Args:
            deadline_s: on the clock of time.monotonic; nothing is computed after it.
            gone: done when the client leaves, and then nothing is computed either.
        Raises: HTTPException: 422 what cannot be filled, 503 no room, 504 too late.
        """
        asked = _Asked(len(requests), self._loop.create_future())
        texts: list[SearchJob[bytes]] = [
            _Text(partial(self._begin, request), asked, number)
            for number, request in enumerate(requests)
        ]
        chars = sum(len(one.text) * one.search.top_k + constraint_chars(one) for one in requests)
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
            # A refusal's traceback holds this frame: what leads back to it would be kept with all
            # texts until the garbage of all generations is collected.
            del asked, texts, request

    def close(self, timeout_s: float) -> None:
        """Fill what waits, within a bound, and take no more."""
        if not self._scheduler.close(timeout_s):
            logger.warning("%s was still filling after %g s and is left", self.name, timeout_s)

    def _begin(self, request: FillRequest) -> tuple[int, Steps[bytes]]:
        """Prepare a text; return its weight in memory, and the steps of filling it."""
        prepared = prepare(self._scorer.tokenizer, request, self._scorer.max_length)
        tokens, most = work_tokens(prepared), self._limits.text_tokens
        if tokens > most:
            raise HTTPException(
                422,
                f"filling it would take some {tokens:,} tokens through the model, at most {most:,};"
                " shorten the text, or lower beam, max_pieces or the number of blanks",
            )
        patterns = {constraint.regex for constraint in request.constraints if constraint.regex}
        return tokens + _PATTERN_WEIGHT * len(patterns), self._steps(prepared)

    def _steps(self, prepared: Prepared) -> Steps[bytes]:
        filled = yield from search(prepared, self._pass)
        yield None
        return schema.encoded(filled)

    def _to_loop(self, call: object, *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)  # type: ignore[arg-type]
        except RuntimeError:  # the loop is closed: nobody is left to be answered
            if not self._loop.is_closed():
                raise


def work_tokens(prepared: Prepared) -> int:
    """Return how many tokens filling a text takes through the model at most, over all passes.

    Every layout is read once, and once more for each further masked position by as many rows as its
    beam is wide; `refine` looks at each twice more, mostly. Where there are too many layouts, each
    length of each blank is tried before, greedily, all others at their shortest.
    """
    asked, groups = prepared.request.search, prepared.groups
    masked = sum(max(group.rules) for group in groups)
    width = max(asked.beam, asked.top_k, *(len(group.written) for group in groups))
    passes = 1 + (masked - 1) * width + (2 * masked * width if asked.order == "refine" else 0)
    tokens = prepared.num_tokens * passes
    if prepared.num_layouts > MAX_LAYOUTS:
        shortest = prepared.shortest()
        for group, least in zip(groups, shortest, strict=True):
            for length in group.rules:
                longer = (length - least) * len(group.blanks)
                tokens += (sum(shortest) - least + length) * (prepared.length(shortest) + longer)
    return tokens


def _settle(settled: Sequence[tuple[SearchJob[bytes], Outcome]]) -> None:
    for job, outcome in settled:
        assert isinstance(job, _Text)
        job.asked.settle(job.number, outcome)


def _as_http(number: int, error: Exception) -> Exception:
    """Turn what stopped a text into an answer; what is nobody's fault stays as it is."""
    if isinstance(error, QueueFull):
        return HTTPException(503, "too many texts wait already; try again", {"retry-after": "1"})
    if isinstance(error, Stopped):
        return HTTPException(503, "the server stops; try again", {"retry-after": "5"})
    if isinstance(error, TooLate):
        return HTTPException(504, "not filled before the deadline; ask for less, or later")
    if isinstance(error, HTTPException):
        return HTTPException(error.status_code, f"texts[{number}]: {error.detail}", error.headers)
    if isinstance(error, FitbError):
        return HTTPException(422, f"texts[{number}]: {error}")
    return error
