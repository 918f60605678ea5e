import dataclasses
import math
import re

import numpy as np
import pytest

from fitb import rng
from fitb.errors import ConfigError, DataError
from fitb.evaluate.counts import COLUMNS, JUDGED, NUM_BINS, PLAIN, RowCounts
from fitb.evaluate.metrics import (
    METRICS,
    Interval,
    difference,
    differences,
    metrics_of,
    spread,
    summaries,
    summarise,
)

PLAIN_METRICS = METRICS[:5]


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


def test_metrics_are_what_their_names_say():
    found = metrics_of(np.array([6.0, 4, 1, 3, 8, 2]))
    assert found["loss"] == 1.5
    assert found["ppl"] == pytest.approx(math.exp(1.5))
    assert (found["top1"], found["top5"], found["span_em"]) == (0.25, 0.75, 0.25)
    assert tuple(found) == PLAIN_METRICS
    sums = np.zeros(len(COLUMNS))
    sums[:6] = 6.0, 4, 1, 3, 8, 2
    sums[COLUMNS.index("f1_sum")] = 6
    sums[COLUMNS.index("gap_03")], sums[COLUMNS.index("gap_14")] = -0.5, 0.3
    sums[-2:] = 3, 1.0
    found = metrics_of(sums)
    assert tuple(found) == METRICS
    assert found["span_f1"] == 0.75
    assert found["ece"] == pytest.approx((0.5 + 0.3) / 4)
    assert (found["agreement"], found["kl"]) == (0.75, 0.25)
    assert tuple(metrics_of(sums[: len(JUDGED)])) == METRICS[:7]


def test_metrics_of_many_sums_are_those_of_each():
    totals = np.random.default_rng(0).integers(1, 9, (4, 3, len(COLUMNS))).astype(float)
    found = metrics_of(totals)
    for i in range(4):
        for j in range(3):
            for name, value in metrics_of(totals[i, j]).items():
                assert found[name][i, j] == value


def test_nothing_to_count_is_nan_and_silent():
    found = metrics_of(np.zeros(len(COLUMNS)))
    assert all(np.isnan(found[name]) for name in METRICS)


def test_sums_of_parts_are_the_sum_of_the_whole():
    counts = make_counts(50)
    parts = [part(counts, slice(0, 13)), part(counts, slice(13, 13)), part(counts, slice(13, 50))]
    np.testing.assert_allclose(sum(p.totals() for p in parts), counts.totals(), rtol=1e-12)
    joined = RowCounts.joined(parts)
    np.testing.assert_array_equal(joined.rows, counts.rows)
    np.testing.assert_array_equal(joined.documents, counts.documents)
    np.testing.assert_array_equal(joined.sums, counts.sums)


def test_values_are_those_of_the_plain_sums():
    counts = make_counts(30)
    found = summarise(counts)
    slots, words = counts.column("num_slots").sum(), counts.column("num_words").sum()
    expected = {
        "loss": counts.column("loss_sum").sum() / slots,
        "top1": counts.column("top1").sum() / slots,
        "top5": counts.column("top5").sum() / slots,
        "span_em": counts.column("words_right").sum() / words,
        "span_f1": counts.column("f1_sum").sum() / words,
        "ece": sum(abs(counts.column(f"gap_{b:02}").sum()) for b in range(NUM_BINS)) / slots,
        "agreement": counts.column("agreed").sum() / slots,
        "kl": counts.column("kl_sum").sum() / slots,
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value), name


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
    found = summarise(counts, seed=7, num_resamples=200)
    for name in METRICS:
        drawn = np.array([r[name] for r in resampled])
        if name == "ece":  # centred on the value
            drawn += found[name].value - drawn.mean()
        low, high = np.percentile(drawn, [2.5, 97.5])
        assert found[name].low == pytest.approx(low, rel=1e-9)
        assert found[name].high == pytest.approx(high, rel=1e-9)


def test_intervals_are_as_wide_as_the_normal_theory_of_a_ratio_says():
    counts = make_counts(400)
    found = summarise(counts)["loss"]
    loss_sum, num_slots = counts.column("loss_sum"), counts.column("num_slots")
    error = math.sqrt(((loss_sum - found.value * num_slots) ** 2).sum()) / num_slots.sum()
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.low < found.value < found.high


def test_intervals_widen_as_the_rows_of_a_document_depend_on_each_other():
    alike = make_counts(100)
    copies = RowCounts(np.arange(400), np.arange(400), np.repeat(alike.sums, 4, axis=0))
    for name in METRICS:
        alone, rows = summarise(alike)[name], summarise(copies)[name]
        documents = summarise(in_documents(copies, 4))[name]
        assert documents.high - documents.low == pytest.approx(alone.high - alone.low, rel=0.2)
        assert rows.high - rows.low == pytest.approx((alone.high - alone.low) / 2, rel=0.3)


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
    counts = changed(
        make_counts(10), **dict.fromkeys(("num_words", "words_right", "f1_sum"), np.zeros_like)
    )
    found = summarise(counts)
    assert np.isnan(dataclasses.astuple(found["span_em"])).all()
    assert not np.isnan(dataclasses.astuple(found["top1"])).any()


def test_a_model_that_is_not_finite_has_no_finite_loss():
    counts = make_counts(10)
    counts.column("loss_sum")[3] = np.nan
    assert np.isnan(dataclasses.astuple(summarise(counts)["loss"])).all()


def test_a_model_does_not_differ_from_itself():
    counts = make_counts(30)
    for name in METRICS:
        assert difference(counts, counts, name) == Interval(0.0, 0.0, 0.0)


def test_a_difference_is_that_of_the_values_and_turns_its_sign():
    first, second = make_counts(60), make_counts(60)
    second = changed(second, loss_sum=lambda loss: loss * 1.1)
    forth, back = difference(first, second, "loss"), difference(second, first, "loss")
    expected = summarise(first)["loss"].value - summarise(second)["loss"].value
    assert forth.value == pytest.approx(expected)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert forth.high < 0


def test_pairing_takes_out_what_rows_have_in_common():
    first = make_counts(200)
    shift = np.random.default_rng(5).normal(0.05, 0.01, 200) * first.column("num_slots")
    second = changed(first, loss_sum=lambda loss: loss + shift[:, None])
    paired = difference(second, first, "loss")
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
            difference(counts, other, "loss")


def test_an_unknown_metric_names_the_nearest():
    counts = make_counts(3)
    with pytest.raises(ConfigError, match=re.escape("(nearest: span_em)")):
        difference(counts, counts, "span_en")


def test_groups_are_summarised_each_by_itself():
    counts = make_counts(30, groups=3)
    found = summaries(counts, seed=2)
    for g in range(3):
        alone = summarise(dataclasses.replace(counts, sums=counts.sums[:, g : g + 1]), seed=2)
        for name, interval in found[g].items():
            assert dataclasses.astuple(interval) == pytest.approx(dataclasses.astuple(alone[name]))


def test_plain_columns_alone_give_plain_metrics():
    counts = make_counts(12)
    plain = summarise(dataclasses.replace(counts, sums=counts.sums[:, :, : len(PLAIN)]))
    assert tuple(plain) == PLAIN_METRICS
    for name, interval in plain.items():
        whole = dataclasses.astuple(summarise(counts)[name])
        assert dataclasses.astuple(interval) == pytest.approx(whole)


def test_a_model_compared_with_itself_gives_zeros_and_a_p_value_of_one():
    counts = make_counts(30, groups=2)
    for apart in differences(counts, counts):
        for each in apart.values():
            assert (each.value, each.low, each.high, each.p) == (0, 0, 0, 1)


def test_p_values_equal_a_naive_exchange_of_documents():
    first = second = in_documents(make_counts(24, seed=1), 2)
    draw = np.random.default_rng(8)
    second = changed(
        second,
        loss_sum=lambda loss: loss + draw.normal(0.3, 1.5, loss.shape),
        gap_04=lambda gap: gap + draw.normal(0.1, 0.3, gap.shape),
    )
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


def test_p_values_come_near_those_of_all_exchanges():
    first = make_counts(9, seed=3)
    draw = np.random.default_rng(4)
    second = changed(first, loss_sum=lambda loss: loss + draw.normal(1, 3, loss.shape))
    apart = first.column("loss_sum") - second.column("loss_sum")
    signs = np.array(np.meshgrid(*[[1, -1]] * 9)).reshape(9, -1)
    exact = np.mean(np.abs(apart @ signs) >= abs(apart.sum()) - 1e-9)
    found = differences(first, second, num_resamples=4000)[0]["loss"].p
    assert 0.02 < exact < 0.98
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))


def test_p_values_are_small_where_models_differ_whichever_comes_first():
    first = make_counts(80)
    second = changed(first, loss_sum=lambda loss: loss * 1.05)
    forth, back = differences(first, second)[0]["loss"], differences(second, first)[0]["loss"]
    assert forth.p == back.p == pytest.approx(1 / 1001)


def test_p_values_depend_on_the_seed_and_on_nothing_else():
    first = make_counts(12, seed=1)
    draw = np.random.default_rng(8)
    second = changed(first, loss_sum=lambda loss: loss + draw.normal(0.3, 1.5, loss.shape))
    found = [differences(first, second, seed=seed)[0]["loss"].p for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_a_metric_without_a_number_has_no_p_value():
    counts = changed(
        make_counts(10), **dict.fromkeys(("num_words", "words_right", "f1_sum"), np.zeros_like)
    )
    found = differences(counts, counts)[0]
    assert np.isnan(found["span_em"].p) and found["loss"].p == 1


def test_the_spread_over_masks_is_that_of_a_sample():
    assert spread([1.0, 2.0, 4.0]) == pytest.approx({"mean": 7 / 3, "sd": math.sqrt(7 / 3)})
    assert np.isnan(spread([1.0])["sd"])


def test_an_infinite_perplexity_is_no_error():
    counts = changed(make_counts(10), loss_sum=lambda loss: loss + 1e6)
    assert summarise(counts)["ppl"].value == math.inf
    assert np.isnan(differences(counts, counts)[0]["ppl"].p)
