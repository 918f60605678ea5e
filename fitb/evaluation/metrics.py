"""Metrics of masked-token prediction, bootstrap intervals, and paired significance tests.

A metric is a function of sums, so a resample is a weighted sum. The unit of resampling is the
document: its rows are not independent, and intervals over rows would be too narrow. An interval
covers the choice of documents of this kind, not another source of text or another training seed.
Legend: N parts of rows, D documents, G groups, C columns, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fitb.base import rng
from fitb.base.errors import DataError
from fitb.evaluation.categories import GROUPS
from fitb.evaluation.row_counts import COLUMNS, JUDGED, PLAIN, RowCounts

TEXT_METRICS = ("pppl", "bits_per_byte")
METRICS = ("loss", "ppl", "top1", "top5", "span_em", "span_f1", "ece", "agreement", "kl")
_RESAMPLE, _FLIP = 21, 22  # keys of the random streams
_BLOCK = 2**20  # weights drawn at a time, 8 MB
_EQUAL = 1e-12  # relative rounding error of a difference


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A metric of two models and the significance of its difference.

    Args:
        first, second: the two values.
        value: first - second.
        low, high: 95 % confidence interval of `value`.
        p: two-sided p-value under the null hypothesis that the models are the same.
    """

    first: float
    second: float
    value: float
    low: float
    high: float
    p: float


def metrics_of(totals: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Compute metrics from sums; NaN if the denominator is zero.

    Args:
        totals: (..., C) float64, the columns of PLAIN, JUDGED or COLUMNS.
    Returns: (...) float64 for each of the METRICS that the columns allow: loss in nats per masked
        position, ppl = exp(loss), top1 and top5 as shares of positions, span_em and span_f1 per
        word masked as a whole, ece = expected calibration error in 15 bins of equal width (Guo et
        al. 2017, eq. 3), agreement with the teacher as a share of positions, kl = KL(teacher ||
        model) in nats per position.
    """
    num_columns = totals.shape[-1]
    loss_sum, num_slots, top1, top5, num_words, right = np.moveaxis(totals[..., :6], -1, 0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        loss = loss_sum / num_slots
        found = {
            "loss": loss,
            "ppl": np.exp(loss),
            "top1": top1 / num_slots,
            "top5": top5 / num_slots,
            "span_em": right / num_words,
        }
        if num_columns >= len(JUDGED):
            gaps = totals[..., len(PLAIN) + 1 : len(JUDGED)]
            found["span_f1"] = totals[..., len(PLAIN)] / num_words
            found["ece"] = np.abs(gaps).sum(axis=-1) / num_slots
        if num_columns == len(COLUMNS):
            found["agreement"] = totals[..., -2] / num_slots
            found["kl"] = totals[..., -1] / num_slots
    return found


def summaries(
    counts: RowCounts, seed: int = 0, num_resamples: int = 1000
) -> list[dict[str, Interval]]:
    """Return each group's metrics with 95 % bootstrap percentile intervals.

    Args:
        counts: counts of a model.
        seed: seed of the resamples, which all groups share.
        num_resamples: number of resamples.
    """
    values = metrics_of(counts.totals())
    resampled = metrics_of(_weighted(counts.documents, counts.sums, seed, num_resamples, _poisson))
    return [
        {name: _interval(name, float(values[name][g]), resampled[name][:, g]) for name in values}
        for g in range(counts.sums.shape[1])
    ]


def differences(
    first: RowCounts, second: RowCounts, *, seed: int = 0, num_resamples: int = 1000
) -> list[dict[str, Difference]]:
    """Compare two models by every metric in each group.

    Intervals are from a paired bootstrap: both models get the same weights, so variation between
    documents cancels. P-values are from paired approximate randomisation: the share of random
    exchanges of the models' results per document that give a difference at least as large as the
    observed one, which counts too.

    Args:
        first, second: counts of the two models on the same rows and masks.
        seed: seed of resamples and exchanges.
        num_resamples: number of resamples, and of exchanges.
    Raises: DataError if the models were not counted on the same rows with the same masks.
    Source: Noreen, Computer-intensive methods for testing hypotheses, 1989; for metrics that are no
        means: Yeh, More accurate tests for the statistical significance of result differences,
        COLING 2000; Riezler and Maxwell, On some pitfalls in automatic evaluation, 2005.
    """
    _check_pairs(first, second)
    documents, both = first.documents, np.stack([first.sums, second.sums], axis=1)  # (N, 2, G, C)
    resampled = metrics_of(_weighted(documents, both, seed, num_resamples, _poisson))
    apart = _weighted(documents, both[:, 0] - both[:, 1], seed, num_resamples, _sign)
    together = first.totals() + second.totals()
    exchanged = [metrics_of((together + sign * apart) / 2) for sign in (1, -1)]
    ours, theirs = metrics_of(first.totals()), metrics_of(second.totals())
    found: list[dict[str, Difference]] = []
    for g in range(first.sums.shape[1]):
        found.append({})
        for name in ours:
            a, b = float(ours[name][g]), float(theirs[name][g])
            with np.errstate(invalid="ignore"):
                drawn = resampled[name][:, 0, g] - resampled[name][:, 1, g]
                flipped = exchanged[0][name][:, g] - exchanged[1][name][:, g]
            interval = _interval(name, a - b, drawn)
            found[g][name] = Difference(
                a, b, interval.value, interval.low, interval.high, _p_value(a, b, flipped)
            )
    return found


def _check_pairs(first: RowCounts, second: RowCounts) -> None:
    pairs = {
        "rows": (first.rows, second.rows),
        "documents": (first.documents, second.documents),
        **{name: (first.column(name), second.column(name)) for name in ("num_slots", "num_words")},
    }
    for name, (ours, theirs) in pairs.items():
        if not np.array_equal(ours, theirs):
            raise DataError(
                f"the two models differ in {name} ({len(np.unique(first.rows))} and"
                f" {len(np.unique(second.rows))} rows); evaluate both with the same shards, split,"
                " rows, mask and seed"
            )


def _p_value(first: float, second: float, exchanged: NDArray[np.float64]) -> float:
    if np.isnan(first - second):
        return float("nan")
    least = abs(first - second) - _EQUAL * (abs(first) + abs(second))
    return float((1 + (np.abs(exchanged) >= least).sum()) / (1 + len(exchanged)))


def _weighted(
    documents: NDArray[np.int64],
    table: NDArray[np.float64],
    seed: int,
    num_resamples: int,
    weights_of: Callable[[int, NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Sum a table (N, ...) with random weights (R, n) of its documents (N,): (R, ...) float64."""
    numbers, place = np.unique(documents, return_inverse=True)
    flat = np.zeros((len(numbers), math.prod(table.shape[1:])))
    np.add.at(flat, place, table.reshape(len(table), -1))
    sums = np.zeros((num_resamples, flat.shape[1]))
    resamples = np.arange(num_resamples)[:, None]
    step = max(1, _BLOCK // max(1, num_resamples))
    for begin in range(0, len(flat), step):
        block = slice(begin, begin + step)
        sums += weights_of(seed, resamples, numbers[block]) @ flat[block]
    return sums.reshape(num_resamples, *table.shape[1:])


def _poisson(
    seed: int, resamples: NDArray[np.int64], documents: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return Poisson(1) weights, (R, n) float64: a bootstrap without a fixed sample size.

    Source: Hanley and MacGibbon, Creating non-parametric bootstrap samples using Poisson
        frequencies, 2006.
    """
    drawn = rng.uniform(seed, _RESAMPLE, resamples, documents)
    return np.searchsorted(_POISSON_CDF, drawn, side="right").astype(np.float64)


def _sign(
    seed: int, resamples: NDArray[np.int64], documents: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return random signs, (R, n) float64."""
    return np.where(rng.uniform(seed, _FLIP, resamples, documents) < 0.5, 1.0, -1.0)


# P(Poisson(1) <= k) for k = 0 .. 17; the rest is below 1e-16, less than float64 resolves.
_POISSON_CDF = np.cumsum([np.exp(-1.0) / math.factorial(k) for k in range(18)])


def text_metrics(
    documents: NDArray[np.int64],
    sums: NDArray[np.float64],
    seed: int = 0,
    num_resamples: int = 1000,
) -> dict[str, Interval]:
    """Return pseudo-perplexity and bits per byte of texts, with 95 % bootstrap intervals.

    Args:
        documents: (N,) int64, document of each part.
        sums: (N, 3) float64: nats, tokens and bytes of each part.
        seed: seed of the resamples.
        num_resamples: number of resamples of documents.
    Returns: pppl = exp(nats / tokens), bits_per_byte = nats / ln 2 / bytes.
    """

    def metrics(totals: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        nats, tokens, num_bytes = np.moveaxis(totals, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            found = np.exp(nats / tokens), nats / np.log(2) / num_bytes
        return dict(zip(TEXT_METRICS, found, strict=True))

    values = metrics(sums.sum(axis=0))
    resampled = metrics(_weighted(documents, sums, seed, num_resamples, _poisson))
    return {name: _interval(name, float(values[name]), resampled[name]) for name in values}


def over_masks(counts: Sequence[RowCounts]) -> dict[str, dict[str, float]]:
    """Return mean and sample standard deviation (n - 1) of each metric over masks."""
    found = {}
    for name, values in metrics_of(np.stack([each.totals()[0] for each in counts])).items():
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        found[name] = {"mean": float(np.mean(values)), "sd": sd}
    return found


def by_group(
    found: Sequence[Mapping[str, Interval | Difference]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the results of `summaries` or `differences` as plain dicts by name of the group."""
    return {
        group: {metric: asdict(each) for metric, each in values.items()}
        for group, values in zip(GROUPS, found, strict=True)
    }


def _interval(metric: str, value: float, resampled: NDArray[np.float64]) -> Interval:
    """Return the percentile interval over resamples that are not NaN."""
    drawn = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not len(drawn):
        return Interval(value, float("nan"), float("nan"))
    with np.errstate(invalid="ignore"):  # a perplexity may be infinite
        low, high = np.percentile(drawn, [2.5, 97.5])
    # A sum of absolute values, which the noise of resampling biases upwards: centred on the value.
    moved = value - drawn.mean() if metric == "ece" else 0.0
    return Interval(value, float(low + moved), float(high + moved))
