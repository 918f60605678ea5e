"""From requests to filled texts: prepared in a few threads, batched for the one that owns a model.

A request crosses threads three times (event loop, preparation, model, event loop), and the answers
of a batch come back to the event loop in one call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fitb.errors import FitbError
from fitb.infer.blanks import Prepared, prepare
from fitb.infer.fill import fill_prepared
from fitb.infer.request import Filled, FillRequest
from fitb.infer.scorer import Scorer
from fitb.serve.batcher import Batcher, Bounds, Job, QueueFull, Stopped, TooLate
from fitb.serve.config import ServeConfig
from fitb.serve.metrics import Metrics
from fitb.serve.refusal import Refusal

logger = logging.getLogger(__name__)

Outcome = Filled | Exception


class _Asked:
    """Texts of one request, and what became of them so far."""

    def __init__(self, texts: int, future: asyncio.Future[list[Filled]]) -> None:
        self.filled: list[Filled | None] = [None] * texts
        self.open = texts
        self.future = future
        self.jobs: list[Job[_Text]] = []

    def settle(self, number: int, outcome: Outcome) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(_as_refusal(number, outcome))
            return
        self.filled[number] = outcome
        self.open -= 1
        if not self.open:
            self.future.set_result(self.filled)  # type: ignore[arg-type]


class _Text:
    """A prepared text, and whose it is."""

    __slots__ = ("asked", "number", "prepared")

    def __init__(self, prepared: Prepared, asked: _Asked, number: int) -> None:
        self.prepared = prepared
        self.asked = asked
        self.number = number


class Filler:
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
        self._config = config
        self._loop = loop
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="fitb-prepare")
        self._batcher: Batcher[_Text, Filled] = Batcher(
            lambda texts: fill_prepared(scorer, [text.prepared for text in texts]),
            Bounds(config.max_batch_texts, config.max_batch_tokens, config.max_queue),
            lambda settled: self._to_loop(_settle, settled),
            metrics.batches_of(name),
        )
        metrics.watch_queue(name, self._batcher.__len__)

    async def fill(self, requests: Sequence[FillRequest], deadline_s: float) -> list[Filled]:
        """Fill texts, in batches with those of others.

        Args:
            deadline_s: on the clock of time.monotonic.
        Raises: Refusal: 422 what cannot be filled, 503 no room, 504 too late.
        """
        asked = _Asked(len(requests), self._loop.create_future())
        left_s = deadline_s - time.monotonic()
        late = self._loop.call_later(left_s, asked.settle, 0, TooLate())
        try:
            self._pool.submit(self._admit, requests, asked, deadline_s)
            return await asked.future
        finally:
            late.cancel()
            for job in asked.jobs:
                job.wanted = False

    def close(self, timeout_s: float) -> None:
        """Fill what waits, within a bound, and take no more."""
        self._pool.shutdown()
        if not self._batcher.close(timeout_s):
            logger.warning("%s was still filling after %g s and is left", self.name, timeout_s)

    def _admit(self, requests: Sequence[FillRequest], asked: _Asked, deadline_s: float) -> None:
        number = 0
        try:
            jobs = []
            for number, request in enumerate(requests):
                if time.monotonic() > deadline_s:
                    raise TooLate
                prepared = prepare(self._scorer.tokenizer, request, self._scorer.max_length)
                tokens = work_tokens(prepared)
                self._check(tokens)
                jobs.append(Job(_Text(prepared, asked, number), tokens, deadline_s))
            asked.jobs = jobs
            self._batcher.submit(jobs)
        except Exception as error:
            self._to_loop(asked.settle, number, error)

    def _check(self, tokens: int) -> None:
        most = self._config.limits.text_tokens
        if tokens > most:
            raise Refusal(
                422,
                f"filling it would take some {tokens:,} tokens through the model, at most {most:,};"
                " shorten the text, or lower beam, max_pieces or the number of blanks",
            )

    def _to_loop(self, call: object, *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)  # type: ignore[arg-type]
        except RuntimeError:  # the loop is closed: nobody is left to be answered
            if not self._loop.is_closed():
                raise


def work_tokens(prepared: Prepared) -> int:
    """Return how many tokens filling a text takes through the model at most, over all passes.

    Every layout is read once, and once more for each further slot by as many rows as its beam is
    wide; `refine` looks at every slot twice more, mostly.
    """
    search, groups = prepared.request.search, prepared.groups
    slots = sum(max(group.rules) for group in groups)
    width = max(search.beam, search.top_k, *(len(group.written) for group in groups))
    passes = 1 + (slots - 1) * width + (2 * slots * width if search.order == "refine" else 0)
    return prepared.num_tokens * passes


def _settle(settled: Sequence[tuple[Job[_Text], Outcome]]) -> None:
    for job, outcome in settled:
        job.work.asked.settle(job.work.number, outcome)


def _as_refusal(number: int, error: Exception) -> Exception:
    """Turn what stopped a text into an answer; what is nobody's fault stays as it is."""
    if isinstance(error, QueueFull):
        return Refusal(503, "too many texts wait already; try again", {"retry-after": "1"})
    if isinstance(error, Stopped):
        return Refusal(503, "the server stops; try again", {"retry-after": "5"})
    if isinstance(error, TooLate):
        return Refusal(504, "not filled before the deadline; ask for less, or later")
    if isinstance(error, Refusal):
        return Refusal(error.status, f"texts[{number}]: {error.reason}", error.headers)
    if isinstance(error, FitbError):
        return Refusal(422, f"texts[{number}]: {error}")
    return error
