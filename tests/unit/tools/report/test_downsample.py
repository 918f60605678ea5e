"""Downsampled curves against a loop over their buckets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fitb.tools.report.downsample import downsample, medians


def by_a_loop(y, buckets):
    """Places that are kept, found one stretch after the other."""
    kept = {0, len(y) - 1}
    for b in range(buckets):
        stretch = range(b * len(y) // buckets, (b + 1) * len(y) // buckets)
        kept |= set([i for i in stretch if math.isnan(y[i])][:1])
        if finite := [i for i in stretch if not math.isnan(y[i])]:
            kept |= {min(finite, key=y.__getitem__), max(finite, key=y.__getitem__)}
    return sorted(kept)


@pytest.mark.parametrize("size", [1, 14, 15, 100, 1001])
@pytest.mark.parametrize("gaps", [0.0, 0.3, 1.0])
def test_downsampling_keeps_what_a_loop_over_the_buckets_keeps(size, gaps):
    draw = np.random.default_rng(size)
    y = draw.integers(0, 6, size).astype(float)  # many are equal
    y[draw.random(size) < gaps] = np.nan
    x = np.arange(size, dtype=float) * 10
    found_x, found_y = downsample(x, y, buckets=7)
    places = list(range(size)) if size <= 14 else by_a_loop(y.tolist(), 7)
    np.testing.assert_array_equal(found_x, x[places])
    np.testing.assert_array_equal(found_y, y[places])


def test_medians_of_stretches_pass_over_what_is_no_number():
    x = np.array([1.0, 2.0, 3.0, 4.0, 5.0, np.nan, 7.0])
    y = np.array([5.0, np.nan, 1.0, 3.0, 9.0, 8.0, 7.0])
    found = medians(x, y, buckets=2)  # of 1, 3, 4 and of 5, 7
    np.testing.assert_array_equal(found, ([3.0, 6.0], [3.0, 8.0]))
    assert len(medians(np.array([np.nan]), np.array([1.0]))[0]) == 0
