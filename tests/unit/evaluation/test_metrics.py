"""Metrics, intervals and p-values against naive loops."""

import dataclasses
import math

import numpy as np
import pytest

from fitb.base import rng
from fitb.base.errors import DataError
from fitb.evaluation.metrics import METRICS, differences, metrics_of, summaries
from fitb.evaluation.row_counts import COLUMNS, JUDGED, NUM_BINS, PLAIN, RowCounts

PLAIN_METRICS = METRICS[:5]
NO_WORDS = dict.fromkeys(("num_words", "words_right", "f1_sum"), np.zeros_like)


def make_counts(num_rows, seed=0, loss=2.0, right=0.5, groups=1):
    draw = np.random.default_rng(seed)
    num_slots = draw.integers(5, 20, num_rows)
    num_words = draw.integers(1, 5, num_rows)
    top1 = draw.binomial(num_slots, right)
    columns = [
        num_slots * draw.gamma(4, loss / 4, num_rows),
        num_slots,
        top1,
        np.minimum(num_slots, top1 + draw.integers(0, 3, num_rows)),
        num_words,
        draw.binomial(num_words, right),
        num_words * draw.random(num_rows),
        *draw.normal(0, 0.3, (NUM_BINS, num_rows)),
        draw.binomial(num_slots, 0.7),
        num_slots * draw.random(num_rows),
    ]
    whole = np.stack(columns, axis=1).astype(float)
    shares = [np.ones((num_rows, 1)), *draw.integers(0, 2, (groups - 1, num_rows, 1))]
    sums = np.stack([whole * share for share in shares], axis=1)
    return RowCounts(np.arange(num_rows), np.arange(num_rows) * 3 + 5, sums)


def part(counts, which):
    return RowCounts(counts.rows[which], counts.documents[which], counts.sums[which])


def in_documents(counts, num_rows):
    """The same rows, so many to a document."""
    return dataclasses.replace(counts, documents=counts.rows // num_rows)


def changed(counts, **columns):
    sums = counts.sums.copy()
    for name, change in columns.items():
        place = COLUMNS.index(name)
        sums[:, :, place] = change(sums[:, :, place])
    return dataclasses.replace(counts, sums=sums)


def noisier(counts, **noise):
    """Another model on the same rows: (mean, sd) of what is added to a column."""
    draw = np.random.default_rng(8)
    added = {name: draw.normal(*each, counts.sums.shape[:2]) for name, each in noise.items()}
    return changed(counts, **{name: lambda old, n=name: old + added[n] for name in added})


def summarise(counts, **options):
    return summaries(counts, **options)[0]


def numbers(interval):
    return pytest.approx(dataclasses.astuple(interval), nan_ok=True)


def test_metrics_are_what_their_names_say():
    sums = np.zeros(len(COLUMNS))
    sums[:6] = 6.0, 4, 1, 3, 8, 2
    sums[COLUMNS.index("f1_sum")] = 6
    sums[COLUMNS.index("gap_03")], sums[COLUMNS.index("gap_14")] = -0.5, 0.3
    sums[-2:] = 3, 1.0
    expected = {"loss": 1.5, "ppl": math.exp(1.5), "top1": 0.25, "top5": 0.75, "span_em": 0.25}
    expected |= {"span_f1": 0.75, "ece": (0.5 + 0.3) / 4, "agreement": 0.75, "kl": 0.25}
    assert metrics_of(sums) == pytest.approx(expected)
    for columns, names in ((6, PLAIN_METRICS), (len(JUDGED), METRICS[:7])):
        assert metrics_of(sums[:columns]) == pytest.approx({n: expected[n] for n in names})
    nothing = metrics_of(np.zeros(len(COLUMNS)))
    assert tuple(nothing) == METRICS and np.isnan(list(nothing.values())).all()


def test_intervals_equal_a_naive_poisson_bootstrap():
    counts = in_documents(make_counts(20), 3)
    resampled = []
    for resample in range(200):
        sums = np.zeros(len(COLUMNS))
        for document, values in zip(counts.documents, counts.sums[:, 0], strict=True):
            left, weight, chance = float(rng.uniform(7, 21, resample, document)), 0, math.exp(-1)
            while left >= chance:  # walk the distribution of Poisson(1)
                left -= chance
                weight += 1
                chance /= weight
            sums += weight * values
        resampled.append(metrics_of(sums))
    found, values = summarise(counts, seed=7, num_resamples=200), metrics_of(counts.totals())
    for name in METRICS:
        drawn = np.array([r[name] for r in resampled])
        if name == "ece":  # centred on the value
            drawn += found[name].value - drawn.mean()
        low, high = np.percentile(drawn, [2.5, 97.5])
        expected = (float(values[name][0]), low, high)
        assert dataclasses.astuple(found[name]) == pytest.approx(expected, rel=1e-9)


def test_the_interval_of_a_calibration_error_has_its_value_in_the_middle():
    draw = np.random.default_rng(0)
    covered, gaps = [], draw.normal(0, 0.3, (200, 60, NUM_BINS))
    whole = np.abs(gaps.sum(axis=1)).sum(axis=1).mean() / (60 * 12)  # of a sample of this size
    for sample in gaps:
        counts = make_counts(60)
        counts.sums[:, 0, COLUMNS.index("num_slots")] = 12
        counts.sums[:, 0, len(PLAIN) + 1 : len(PLAIN) + 1 + NUM_BINS] = sample
        found = summarise(counts, num_resamples=200)["ece"]
        assert found.low < found.value < found.high
        assert abs((found.low + found.high) / 2 - found.value) < 0.15 * (found.high - found.low)
        covered.append(found.low <= whole <= found.high)
    assert np.mean(covered) > 0.9


def test_intervals_and_p_values_depend_on_the_seed_and_not_on_order_or_blocks(monkeypatch):
    counts = make_counts(40)
    other = noisier(counts, loss_sum=(0.3, 1.5))
    whole = summarise(counts, seed=1)
    assert whole == summarise(counts, seed=1)
    assert whole["loss"] != summarise(counts, seed=2)["loss"]
    p_values = [differences(counts, other, seed=seed)[0]["loss"].p for seed in (1, 1, 2)]
    assert p_values[0] == p_values[1] != p_values[2]
    turned = summarise(part(counts, slice(None, None, -1)), seed=1)
    monkeypatch.setattr("fitb.evaluation.metrics._BLOCK", 7000)
    for found in (turned, summarise(counts, seed=1)):
        for name, interval in found.items():
            assert dataclasses.astuple(whole[name]) == numbers(interval)


def test_each_group_and_any_columns_are_summarised_as_if_alone():
    counts = make_counts(30, groups=3)
    found = summaries(counts, seed=2)
    for g in range(3):
        alone = dataclasses.replace(counts, sums=counts.sums[:, g : g + 1])
        plain = dataclasses.replace(alone, sums=alone.sums[:, :, : len(PLAIN)])
        for one, names in ((alone, METRICS), (plain, PLAIN_METRICS)):
            summary = summarise(one, seed=2)
            assert tuple(summary) == names
            for name in names:
                assert dataclasses.astuple(found[g][name]) == numbers(summary[name])


def test_what_is_no_number_has_no_interval_and_no_p_value_and_the_rest_as_ever():
    counts = changed(make_counts(10), **NO_WORDS)
    found, apart = summarise(counts), differences(counts, counts)[0]
    assert np.isnan(dataclasses.astuple(found["span_em"])).all() and np.isnan(apart["span_em"].p)
    assert not np.isnan(dataclasses.astuple(found["top1"])).any() and apart["loss"].p == 1
    infinite = changed(counts, loss_sum=lambda loss: loss + 1e6)
    assert summarise(infinite)["ppl"].value == math.inf
    assert np.isnan(differences(infinite, infinite)[0]["ppl"].p)
    counts.column("loss_sum")[3] = np.nan
    assert np.isnan(dataclasses.astuple(summarise(counts)["loss"])).all()
    one = summarise(make_counts(1))["loss"]
    assert (one.low, one.high) == pytest.approx((one.value, one.value))


def test_a_difference_is_that_of_the_values_and_turns_its_sign():
    first = make_counts(60)
    second = changed(first, loss_sum=lambda loss: loss * 1.1)
    forth, back = differences(first, second)[0]["loss"], differences(second, first)[0]["loss"]
    expected = [summarise(each)["loss"].value for each in (first, second)]
    assert [forth.first, forth.second] == pytest.approx(expected)
    assert forth.value == pytest.approx(expected[0] - expected[1])
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert forth.high < 0 and forth.p == back.p == pytest.approx(1 / 1001)


def test_pairing_takes_out_what_rows_have_in_common():
    first = make_counts(200)
    shift = np.random.default_rng(5).normal(0.05, 0.01, 200) * first.column("num_slots")
    second = changed(first, loss_sum=lambda loss: loss + shift[:, None])
    paired = differences(second, first)[0]["loss"]
    alone = summarise(first)["loss"]
    assert 0 < paired.low < 0.05 < paired.high
    assert paired.high - paired.low < (alone.high - alone.low) / 10


def test_models_on_other_rows_or_masks_are_not_compared():
    counts = make_counts(30)
    for other, what in (
        (part(counts, slice(0, 29)), "rows"),
        (changed(counts, num_slots=lambda number: number + 1), "num_slots"),
        (changed(counts, num_words=lambda number: number + 1), "num_words"),
    ):
        with pytest.raises(DataError, match=f"differ in {what} "):
            differences(counts, other)


def test_p_values_equal_a_naive_exchange_of_documents():
    first = in_documents(make_counts(24, seed=1), 2)
    second = noisier(first, loss_sum=(0.3, 1.5), gap_04=(0.1, 0.3))
    found = differences(first, second, seed=5, num_resamples=300)[0]
    for name in ("loss", "ppl", "ece", "top1"):
        observed = metrics_of(first.totals())[name][0] - metrics_of(second.totals())[name][0]
        as_large = 1
        for resample in range(300):
            ours, theirs = np.zeros(len(COLUMNS)), np.zeros(len(COLUMNS))
            for i, document in enumerate(first.documents):
                stays = float(rng.uniform(5, 22, resample, document)) < 0.5
                ours += (first if stays else second).sums[i, 0]
                theirs += (second if stays else first).sums[i, 0]
            drawn = metrics_of(ours)[name] - metrics_of(theirs)[name]
            as_large += abs(drawn) >= abs(observed) * (1 - 1e-9)
        assert found[name].p == pytest.approx(as_large / 301), name
    assert found["top1"].p == 1 and 1 / 301 < found["loss"].p < 1
