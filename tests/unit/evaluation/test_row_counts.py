"""Sums per row and group against loops over slots; scores against softmaxes written out."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from evaluating import masked_rows, sharp_model

from fitb.config import MaskConfig
from fitb.data.batch import Batch
from fitb.evaluation.metrics import metrics_of
from fitb.evaluation.row_counts import (
    COLUMNS,
    GAPS,
    JUDGED,
    Scores,
    Slots,
    count_rows,
    piece_classes,
)
from fitb.evaluation.score import Bert, Unigram, score

PIECES = ["the", "a", ".", ",", "##s", "s", "US", "us", "!!", "x-y", "xy", "##.", "caf\u00e9"]
B, L, G = 20, 12, 3


@pytest.fixture
def made():
    """Slots of some words of two or three tokens each, and random answers to them."""
    draw = np.random.default_rng(6)
    words = np.full((B, L), -1)
    rows, places = [], []
    for i in range(B):
        words[i, 1:11] = np.repeat(np.arange(4), [2, 3, 3, 2])
        for word in range(4):
            tokens = np.flatnonzero(words[i] == word)
            wanted = tokens[: draw.integers(0, len(tokens) + 1)]
            rows += [i] * len(wanted)
            places += wanted.tolist()
    row, place = np.array(rows), np.array(places)
    number = len(row)
    true = draw.integers(0, len(PIECES), number)
    rank = np.where(draw.random(number) < 0.6, 1, draw.integers(2, 9, number))
    predicted = np.where(rank <= 1, true, draw.integers(0, len(PIECES), number))
    groups = draw.random((B, L, G)) < 0.5
    groups[:, :, 0] = True
    rows = np.arange(B) + 40
    slots = Slots(rows, 7 * rows, row, row, true, words, words[row, place], groups)
    scores = Scores(
        loss=draw.gamma(2, 1, number),
        rank=rank,
        predicted=predicted,
        confidence=np.where(draw.random(number) < 0.1, 1.0, draw.random(number)),
        agreed=draw.random(number) < 0.5,
        kl=draw.random(number),
    )
    return slots, scores


def normal(piece):
    bare = piece[2:] if piece.startswith("##") else piece
    kept = "".join(c for c in bare.lower() if c.isalpha() or c.isdigit())
    return kept or bare.lower()


def naive(slots, scores, i, group):
    """Sums of one row and group, and its slots' (confidence, right)."""
    sums, sure = Counter(), []
    by_word = {}
    for m in range(len(slots.row)):
        if slots.row[m] == i:
            by_word.setdefault(int(slots.slot_words[m]), []).append(m)
    for word, members in by_word.items():
        if not slots.groups[i, word, group]:
            continue
        for m in members:
            sums["loss_sum"] += scores.loss[m]
            sums["num_slots"] += 1
            sums["top1"] += scores.rank[m] <= 1
            sums["top5"] += scores.rank[m] <= 5
            sums["agreed"] += scores.agreed[m]
            sums["kl_sum"] += scores.kl[m]
            sure.append((scores.confidence[m], scores.rank[m] <= 1))
        if len(members) == (slots.words[i] == word).sum():
            sums["num_words"] += 1
            sums["words_right"] += all(scores.rank[m] <= 1 for m in members)
            truth = Counter(normal(PIECES[slots.labels[m]]) for m in members)
            answer = Counter(normal(PIECES[scores.predicted[m]]) for m in members)
            shared = sum((truth & answer).values())
            if shared:
                precision, recall = shared / answer.total(), shared / truth.total()
                sums["f1_sum"] += 2 * precision * recall / (precision + recall)
    return sums, sure


def test_sums_of_every_row_and_group_equal_naive_loops(made):
    slots, scores = made
    counts = count_rows(slots, scores, piece_classes(PIECES))
    assert counts.sums.shape == (B, G, len(COLUMNS))
    np.testing.assert_array_equal(counts.rows, slots.rows)
    for i in range(B):
        for group in range(G):
            expected, _ = naive(slots, scores, i, group)
            for name in (c for c in COLUMNS if c not in GAPS):
                found = counts.column(name, group)[i]
                assert found == pytest.approx(expected[name], abs=1e-12), (i, group, name)
    assert counts.column("f1_sum").sum() > counts.column("words_right").sum() > 0
    assert counts.column("num_words", 1).sum() > 0


def test_calibration_error_equals_that_of_bins_of_slots(made):
    slots, scores = made
    counts = count_rows(slots, scores, piece_classes(PIECES))
    for group in range(G):
        sure = [pair for i in range(B) for pair in naive(slots, scores, i, group)[1]]
        expected = 0.0
        for number in range(15):
            low, high = number / 15, (number + 1) / 15
            inside = [pair for pair in sure if low < pair[0] <= high]
            if inside:
                confidence, accuracy = np.mean(inside, axis=0)
                expected += len(inside) / len(sure) * abs(accuracy - confidence)
        assert metrics_of(counts.totals()[group])["ece"] == pytest.approx(expected)
    scores.confidence[0] = np.nan
    broken = count_rows(slots, scores, piece_classes(PIECES)).totals()[0]
    assert np.isnan(metrics_of(broken)["ece"])


@pytest.mark.parametrize("columns", [6, len(JUDGED)])
def test_what_was_not_asked_for_is_left_out_and_the_rest_is_the_same(made, columns):
    slots, scores = made
    whole = count_rows(slots, scores, piece_classes(PIECES))
    some = Scores(scores.loss, scores.rank)
    if columns > 6:
        some = Scores(scores.loss, scores.rank, scores.predicted, scores.confidence)
    counts = count_rows(slots, some, piece_classes(PIECES))
    np.testing.assert_array_equal(counts.sums, whole.sums[:, :, :columns])


def test_pieces_are_equal_where_case_and_punctuation_tell_them_apart():
    classes = dict(zip(PIECES, piece_classes(PIECES).tolist(), strict=True))
    same = {frozenset(p for p in PIECES if classes[p] == c) for c in classes.values()}
    expected = [{"##s", "s"}, {"US", "us"}, {"x-y", "xy"}, {".", "##."}]
    assert {s for s in same if len(s) > 1} == {frozenset(e) for e in expected}
    assert classes["the"] != classes["a"]  # a blank of one word has no other content


@pytest.fixture
def models(tokenizer):
    return [sharp_model(tokenizer, layers=1, seed=seed) for seed in (1, 2)]


@pytest.fixture
def batch(memory, vocabulary):
    return Batch.of(masked_rows(memory, range(4), vocabulary, MaskConfig(fraction=0.4)))


def test_answers_equal_softmaxes_written_out(models, batch, monkeypatch):
    monkeypatch.setattr("fitb.evaluation.score._HEAD_POSITIONS", 7)
    teacher, student = models
    seconds = {}
    predictors = {"student": Bert(student), "teacher": Bert(teacher)}
    with torch.no_grad():
        found = score(predictors, batch, teacher="teacher", seconds=seconds)
        whole = [
            m(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.double()
            for m in models
        ]
    assert list(found) == ["student", "teacher"] and seconds.keys() == found.keys()
    used = [(i, k) for i in range(4) for k in range(batch.slots.shape[1]) if batch.labels[i, k] > 0]
    assert len(used) == len(found["student"].loss)
    for m, (i, k) in enumerate(used):
        label, place = int(batch.labels[i, k]), int(batch.slots[i, k])
        p, q = (torch.softmax(logits[i, place], 0).tolist() for logits in whole)
        ours = found["student"]
        assert ours.loss[m] == pytest.approx(-math.log(q[label]), rel=1e-4)
        assert ours.rank[m] == 1 + sum(each > q[label] for each in q)
        assert ours.predicted[m] == q.index(max(q))
        assert ours.confidence[m] == pytest.approx(max(q), rel=1e-4)
        assert ours.agreed[m] == (q.index(max(q)) == p.index(max(p)))
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        assert ours.kl[m] == pytest.approx(divergence, rel=1e-3, abs=1e-5)
    assert found["student"].kl.min() > 0
    assert found["teacher"].agreed.all() and not found["teacher"].kl.any()


def test_without_a_teacher_nothing_is_held_against_one(models, batch):
    with torch.no_grad():
        found = score({"": Bert(models[0])}, batch)[""]
        plain = score({"": Bert(models[0])}, batch, judged=False)[""]
    assert found.agreed is found.kl is plain.predicted is plain.confidence is None
    np.testing.assert_array_equal(found.loss, plain.loss)
    np.testing.assert_array_equal(found.rank, plain.rank)


def test_token_frequencies_are_smoothed_by_one_and_the_true_token_wins_among_equals(
    batch, tokenizer
):
    size, labels = len(tokenizer), batch.labels[batch.labels >= 0].numpy()
    counts = np.random.default_rng(0).integers(0, 9, size)
    found = score({"": Unigram(counts, torch.device("cpu"))}, batch)[""]
    np.testing.assert_allclose(
        found.loss, -np.log((counts[labels] + 1) / (counts.sum() + size)), rtol=1e-5
    )
    flat = score({"": Unigram(np.zeros(size, dtype=np.int64), torch.device("cpu"))}, batch)[""]
    np.testing.assert_array_equal(flat.predicted, labels)
    np.testing.assert_allclose(flat.confidence, 1 / size, rtol=1e-5)
