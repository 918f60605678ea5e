import dataclasses
import math
import re

import numpy as np
import pytest

from fitb import rng
from fitb.errors import ConfigError, DataError
from fitb.evaluate.metrics import (
    COLUMNS,
    METRICS,
    Interval,
    RowCounts,
    difference,
    metrics_of,
    summarise,
)


def make_counts(num_rows, seed=0, loss=2.0, right=0.5):
    draw = np.random.default_rng(seed)
    num_slots = draw.integers(5, 20, num_rows)
    num_words = draw.integers(1, 5, num_rows)
    top1 = draw.binomial(num_slots, right)
    return RowCounts(
        rows=np.arange(num_rows),
        loss_sum=num_slots * draw.gamma(4, loss / 4, num_rows),
        num_slots=num_slots,
        top1=top1,
        top5=np.minimum(num_slots, top1 + draw.integers(0, 3, num_rows)),
        num_words=num_words,
        words_right=draw.binomial(num_words, right),
    )


def part(counts, which):
    return RowCounts(*(getattr(counts, f.name)[which] for f in dataclasses.fields(counts)))


def test_metrics_are_what_their_names_say():
    found = metrics_of(np.array([6.0, 4, 1, 3, 8, 2]))
    assert found["loss"] == 1.5
    assert found["ppl"] == pytest.approx(math.exp(1.5))
    assert (found["top1"], found["top5"], found["span_em"]) == (0.25, 0.75, 0.25)
    assert tuple(found) == METRICS


def test_metrics_of_many_sums_are_those_of_each():
    totals = np.random.default_rng(0).integers(1, 9, (4, 3, 6)).astype(float)
    found = metrics_of(totals)
    for i in range(4):
        for j in range(3):
            for name, value in metrics_of(totals[i, j]).items():
                assert found[name][i, j] == value


def test_nothing_to_count_is_nan_and_silent():
    found = metrics_of(np.zeros(6))
    assert all(np.isnan(found[name]) for name in METRICS)


def test_sums_of_parts_are_the_sum_of_the_whole():
    counts = make_counts(50)
    parts = [part(counts, slice(0, 13)), part(counts, slice(13, 13)), part(counts, slice(13, 50))]
    np.testing.assert_allclose(sum(p.totals() for p in parts), counts.totals(), rtol=1e-12)
    joined = RowCounts.joined(parts)
    for field in dataclasses.fields(counts):
        np.testing.assert_array_equal(getattr(joined, field.name), getattr(counts, field.name))
    assert counts.table().shape == (50, len(COLUMNS))


def test_values_are_those_of_the_plain_sums():
    counts = make_counts(30)
    found = summarise(counts)
    slots = counts.num_slots.sum()
    assert found["loss"].value == pytest.approx(counts.loss_sum.sum() / slots)
    assert found["top1"].value == pytest.approx(counts.top1.sum() / slots)
    assert found["top5"].value == pytest.approx(counts.top5.sum() / slots)
    assert found["span_em"].value == pytest.approx(
        counts.words_right.sum() / counts.num_words.sum()
    )


def test_intervals_equal_a_naive_poisson_bootstrap():
    counts = make_counts(20)
    resampled = []
    for resample in range(200):
        sums = np.zeros(6)
        for row, values in zip(counts.rows, counts.table(), strict=True):
            left, weight, chance = float(rng.uniform(7, 21, resample, row)), 0, math.exp(-1)
            while left >= chance:  # walk the distribution of Poisson(1)
                left -= chance
                weight += 1
                chance /= weight
            sums += weight * values
        resampled.append(metrics_of(sums))
    found = summarise(counts, seed=7, num_resamples=200)
    for name in METRICS:
        low, high = np.percentile([r[name] for r in resampled], [2.5, 97.5])
        assert found[name].low == pytest.approx(low, rel=1e-9)
        assert found[name].high == pytest.approx(high, rel=1e-9)


def test_intervals_are_as_wide_as_the_normal_theory_of_a_ratio_says():
    counts = make_counts(400)
    found = summarise(counts)["loss"]
    residual = counts.loss_sum - found.value * counts.num_slots
    error = math.sqrt((residual**2).sum()) / counts.num_slots.sum()
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.low < found.value < found.high


def test_intervals_depend_on_the_seed_and_on_nothing_else():
    counts = make_counts(40)
    assert summarise(counts, seed=1) == summarise(counts, seed=1)
    assert summarise(counts, seed=1)["loss"] != summarise(counts, seed=2)["loss"]


def test_intervals_do_not_depend_on_the_order_of_rows():
    counts = make_counts(40)
    turned = summarise(part(counts, slice(None, None, -1)))
    for name, interval in summarise(counts).items():
        assert dataclasses.astuple(turned[name]) == pytest.approx(dataclasses.astuple(interval))


def test_many_rows_are_summed_in_blocks(monkeypatch):
    counts = make_counts(40)
    whole = summarise(counts)
    monkeypatch.setattr("fitb.evaluate.metrics._BLOCK", 7000)
    for name, interval in summarise(counts).items():
        assert dataclasses.astuple(whole[name]) == pytest.approx(dataclasses.astuple(interval))


def test_a_single_row_has_no_width():
    found = summarise(make_counts(1))["loss"]
    assert found.low == pytest.approx(found.value)
    assert found.high == pytest.approx(found.value)


def test_no_whole_word_gives_nan_and_the_rest_as_ever():
    counts = dataclasses.replace(
        make_counts(10), num_words=np.zeros(10, int), words_right=np.zeros(10, int)
    )
    found = summarise(counts)
    assert np.isnan(dataclasses.astuple(found["span_em"])).all()
    assert not np.isnan(dataclasses.astuple(found["top1"])).any()


def test_a_model_that_is_not_finite_has_no_finite_loss():
    counts = make_counts(10)
    counts.loss_sum[3] = np.nan
    assert np.isnan(dataclasses.astuple(summarise(counts)["loss"])).all()


def test_a_model_does_not_differ_from_itself():
    counts = make_counts(30)
    for name in METRICS:
        assert difference(counts, counts, name) == Interval(0.0, 0.0, 0.0)


def test_a_difference_is_that_of_the_values_and_turns_its_sign():
    first, second = make_counts(60), make_counts(60)
    second = dataclasses.replace(second, loss_sum=second.loss_sum * 1.1)
    forth, back = difference(first, second, "loss"), difference(second, first, "loss")
    expected = summarise(first)["loss"].value - summarise(second)["loss"].value
    assert forth.value == pytest.approx(expected)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert forth.high < 0


def test_pairing_takes_out_what_rows_have_in_common():
    first = make_counts(200)
    shift = np.random.default_rng(5).normal(0.05, 0.01, 200)
    second = dataclasses.replace(first, loss_sum=first.loss_sum + shift * first.num_slots)
    paired = difference(second, first, "loss")
    alone = summarise(first)["loss"]
    assert 0 < paired.low < 0.05 < paired.high
    assert paired.high - paired.low < (alone.high - alone.low) / 10


def test_models_on_other_rows_or_masks_are_not_compared():
    counts = make_counts(30)
    for other, what in (
        (part(counts, slice(0, 29)), "rows"),
        (dataclasses.replace(counts, num_slots=counts.num_slots + 1), "num_slots"),
        (dataclasses.replace(counts, num_words=counts.num_words + 1), "num_words"),
    ):
        with pytest.raises(DataError, match=f"differ in {what} "):
            difference(counts, other, "loss")


def test_an_unknown_metric_names_the_nearest():
    counts = make_counts(3)
    with pytest.raises(ConfigError, match=re.escape("(nearest: span_em)")):
        difference(counts, counts, "span_en")
