"""Prometheus metrics: counts, latencies and sizes, no user text."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144)
PATHS = ("/v1/fill", "/healthz", "/metrics", "/openapi.json", "/")


class Metrics:
    """Metrics of one server, in their own registry."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter(
            "fitb_requests", "Requests answered.", ["path", "status"], registry=own
        )
        self._seconds = Histogram(
            "fitb_fill_seconds",
            "Latency of /v1/fill, from the headers of the request to the end of the response.",
            buckets=_SECONDS,
            registry=own,
        )
        self.in_flight = Gauge("fitb_in_flight_requests", "Requests in flight.", registry=own)
        self._queue = Gauge("fitb_queue_texts", "Texts in the queue.", ["model"], registry=own)
        self._batch_texts = Histogram(
            "fitb_batch_texts", "Texts per forward pass.", ["model"], buckets=_TEXTS, registry=own
        )
        self._batch_tokens = Histogram(
            "fitb_batch_tokens",
            "Tokens per forward pass, padding included.",
            ["model"],
            buckets=_TOKENS,
            registry=own,
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request; the label of an unknown path is 'other'."""
        self._requests.labels(path if path in PATHS else "other", str(status)).inc()
        if path == "/v1/fill":
            self._seconds.observe(seconds)

    def batches_of(self, model: str) -> Callable[[int, int], None]:
        """Return a callback for the numbers of texts and tokens of a model's forward passes."""
        texts, tokens = self._batch_texts.labels(model), self._batch_tokens.labels(model)

        def observe(num_texts: int, num_tokens: int) -> None:
            texts.observe(num_texts)
            tokens.observe(num_tokens)

        return observe

    def watch_queue(self, model: str, length: Callable[[], int]) -> None:
        """Register a callback that returns the length of a model's queue."""
        self._queue.labels(model).set_function(length)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
