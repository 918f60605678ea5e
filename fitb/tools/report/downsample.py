"""Downsampling of curves to a few hundred points without losing an extreme.

Legend: N points of a curve, B buckets.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BUCKETS = 400  # a chart is about 330 points wide


def downsample(x: Floats, y: Floats, buckets: int = BUCKETS) -> tuple[Floats, Floats]:
    """Keep the lowest point, the highest point and the first gap of each of B equal buckets.

    Args:
        x, y: (N,) float64; a NaN in y is a gap.
    Returns: x and y unchanged if N <= 2 B; else at most 3 B + 2 points in order: the first and the
        last, and of bucket b (points b N // B .. (b + 1) N // B - 1) the first minimum, the first
        maximum and the first NaN, if any.
    """
    size = len(y)
    if size <= 2 * buckets:
        return x, y
    edges = np.arange(buckets + 1) * size // buckets
    kept = [0, size - 1]
    for begin, end in itertools.pairwise(edges.tolist()):
        part = y[begin:end]
        gap = np.isnan(part)
        if gap.any():
            kept.append(begin + int(gap.argmax()))
        if not gap.all():
            kept += [begin + int(np.nanargmin(part)), begin + int(np.nanargmax(part))]
    at = np.unique(kept)
    return x[at], y[at]


def medians(x: Floats, y: Floats, buckets: int = 24) -> tuple[Floats, Floats]:
    """Return the medians of x and of y in equal buckets of their finite points.

    Args:
        x, y: (N,) float64.
        buckets: largest number of points to return.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    parts = max(1, min(buckets, int(finite.sum())))
    split = [np.array_split(values[finite], parts) for values in (x, y)]
    of_x, of_y = (np.array([np.median(part) for part in each if len(part)]) for each in split)
    return of_x, of_y
