"""Downsample curves of any length to a few hundred points without losing an extreme.

Legend: N points of a curve, B buckets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BUCKETS = 400  # of a curve; a chart is some 330 points wide


def downsample(x: Floats, y: Floats, buckets: int = BUCKETS) -> tuple[Floats, Floats]:
    """Keep of each of B equal stretches of points the lowest, the highest and the first gap.

    Args:
        x, y: (N,) float64; a NaN in y is a gap.
    Returns: both as they were where N <= 2 B; else, in order, at most 3 B + 2 of their points: the
        first, the last, and of stretch b, points b N // B .. (b + 1) N // B - 1, the first of the
        least, the first of the largest and the first NaN, of those that there are.
    """
    size = len(y)
    if size <= 2 * buckets:
        return x, y
    edges = np.arange(buckets + 1) * size // buckets
    bucket = np.repeat(np.arange(buckets), np.diff(edges))
    gap = np.isnan(y)
    order = np.lexsort((np.arange(size), np.where(gap, np.inf, y), bucket))
    lowest = order[edges[:-1]]  # a stretch of gaps alone gives its first
    order = np.lexsort((np.arange(size), np.where(gap, np.inf, -y), bucket))
    highest = order[edges[:-1]]
    places = np.flatnonzero(gap)
    first_gaps = places[np.unique(bucket[places], return_index=True)[1]]
    kept = np.unique(np.concatenate([[0, size - 1], lowest, highest, first_gaps]))
    return x[kept], y[kept]


def medians(x: Floats, y: Floats, stretches: int = 24) -> tuple[Floats, Floats]:
    """Return the medians of x and of y in each of some equal stretches of their finite points.

    Args:
        x, y: (N,) float64.
    Returns: at most `stretches` points; none where no point is finite.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if not len(x):
        return x, y
    parts = min(stretches, len(x))
    return (
        np.array([np.median(part) for part in np.array_split(x, parts)]),
        np.array([np.median(part) for part in np.array_split(y, parts)]),
    )
