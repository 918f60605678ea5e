"""Metrics of filled slots from counts per row, with bootstrap intervals.

Counts add up: over rows, over ranks, over resamples. A metric is a function of six sums, and the
bootstrap sums the rows with random weights. Legend: N rows, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial

import numpy as np
from numpy.typing import NDArray

from fitb import rng
from fitb.errors import ConfigError, DataError, nearest

COLUMNS = ("loss_sum", "num_slots", "top1", "top5", "num_words", "words_right")
METRICS = ("loss", "ppl", "top1", "top5", "span_em")
_RESAMPLE = 21  # what a key is for
_BLOCK = 2**20  # weights drawn at a time: 8 MB


@dataclass(frozen=True)
class RowCounts:
    """What a model got right in each row.

    Args:
        rows: (N,) int64, row numbers in the split: they pair models and key the bootstrap.
        loss_sum: (N,) float64, nats over the row's slots.
        num_slots: (N,) int64.
        top1: (N,) int64, slots whose true token has rank 1.
        top5: (N,) int64, slots whose true token has rank 5 or better.
        num_words: (N,) int64, words that start in the row and all of whose tokens are slots.
        words_right: (N,) int64, those of them all of whose tokens have rank 1.

    A rank is 1 + the number of tokens with a strictly greater logit: ties are won.
    """

    rows: NDArray[np.int64]
    loss_sum: NDArray[np.float64]
    num_slots: NDArray[np.int64]
    top1: NDArray[np.int64]
    top5: NDArray[np.int64]
    num_words: NDArray[np.int64]
    words_right: NDArray[np.int64]

    def table(self) -> NDArray[np.float64]:
        """(N, 6) float64, in the order of COLUMNS."""
        return np.stack([getattr(self, name).astype(np.float64) for name in COLUMNS], axis=1)

    def totals(self) -> NDArray[np.float64]:
        """(6,) float64, in the order of COLUMNS; add those of all ranks, then metrics_of."""
        return np.asarray(self.table().sum(axis=0))

    @classmethod
    def joined(cls, parts: Sequence[RowCounts]) -> RowCounts:
        """Return the counts of several sets of rows as one."""
        names = ("rows", *COLUMNS)
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def metrics_of(totals: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Turn sums into metrics; NaN where there was nothing to count.

    Args:
        totals: (..., 6) float64, in the order of COLUMNS.
    Returns: for each of METRICS (...) float64: loss in nats per slot, ppl = exp(loss), top1 and
        top5 as shares of slots, span_em as a share of whole masked words.
    """
    loss_sum, num_slots, top1, top5, num_words, words_right = np.moveaxis(totals, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        loss = loss_sum / num_slots
        return {
            "loss": loss,
            "ppl": np.exp(loss),
            "top1": top1 / num_slots,
            "top5": top5 / num_slots,
            "span_em": words_right / num_words,
        }


def summarise(
    counts: RowCounts, *, seed: int = 0, num_resamples: int = 1000
) -> dict[str, Interval]:
    """Return every metric with its 95 % bootstrap percentile interval over rows."""
    values = metrics_of(counts.totals())
    resampled = metrics_of(_resampled(counts.rows, counts.table(), seed, num_resamples))
    return {name: _interval(float(values[name]), resampled[name]) for name in METRICS}


def difference(
    first: RowCounts, second: RowCounts, metric: str, *, seed: int = 0, num_resamples: int = 1000
) -> Interval:
    """Return metric(first) - metric(second) with its 95 % paired bootstrap interval over rows.

    Both models are resampled with the same weights, so what rows have in common cancels.

    Raises:
        ConfigError: no such metric.
        DataError: the two were not counted on the same rows with the same masks.
    """
    if metric not in METRICS:
        raise ConfigError(
            f"metric {metric!r}; one of {', '.join(METRICS)}{nearest(metric, METRICS)}"
        )
    for name in ("rows", "num_slots", "num_words"):
        if not np.array_equal(getattr(first, name), getattr(second, name)):
            raise DataError(
                f"the two models differ in {name} ({len(first.rows)} and {len(second.rows)} rows):"
                " they can only be compared on the same rows with the same masks; evaluate both"
                " with the same shards, split, rows, mask and seed"
            )
    tables = np.stack([first.table(), second.table()], axis=1)  # (N, 2, 6)
    flat = tables.reshape(len(tables), 2 * len(COLUMNS))
    resampled = _resampled(first.rows, flat, seed, num_resamples)
    values = metrics_of(tables.sum(axis=0))[metric]
    drawn = metrics_of(resampled.reshape(num_resamples, 2, len(COLUMNS)))[metric]
    return _interval(float(values[0] - values[1]), drawn[:, 0] - drawn[:, 1])


def _resampled(
    rows: NDArray[np.int64], table: NDArray[np.float64], seed: int, num_resamples: int
) -> NDArray[np.float64]:
    """Sum the rows of a table under Poisson(1) weights, keyed by (seed, resample, row).

    A row's weights do not depend on the other rows, so parts of a table can be summed apart.

    Args:
        rows: (N,) int64.
        table: (N, C) float64.
    Returns: (R, C) float64.
    Source: Hanley and MacGibbon, Creating non-parametric bootstrap samples using Poisson
        frequencies, 2006.
    """
    sums = np.zeros((num_resamples, table.shape[1]))
    resamples = np.arange(num_resamples)[:, None]
    step = max(1, _BLOCK // max(1, num_resamples))
    for begin in range(0, len(table), step):
        block = slice(begin, begin + step)
        drawn = rng.uniform(seed, _RESAMPLE, resamples, rows[block])
        sums += np.searchsorted(_POISSON_CDF, drawn, side="right") @ table[block]
    return sums


# P(Poisson(1) <= k) for k = 0 .. 17; what is left is below 1e-16, less than a uniform resolves.
_POISSON_CDF = np.cumsum([np.exp(-1.0) / factorial(k) for k in range(18)])


def _interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    """Percentiles of the resamples that drew anything to count."""
    drawn = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))
