"""Masks against loops that go token by token."""

import math

import numpy as np
import pytest
from masking_rows import SEED, STRATEGIES, chosen_of, masked, settings, words_of

from fitb.base import rng
from fitb.data.masking import IGNORE_INDEX, _span_lengths, mask_rows, num_slots

CHOICE, SHOWN, DRAWN, LENGTH = 11, 12, 13, 14  # pinned: another number is another mask


def budget_of(ids, vocabulary, config):
    ordinary = sum(token not in vocabulary.special_ids for token in ids.tolist())
    wanted = max(round(config.fraction * ordinary), 1 if ordinary else 0)
    return min(wanted, num_slots(len(ids), config))


def length_at(u, p, longest):
    """The length at a share of a geometric distribution among 1 .. longest."""
    shares = [p * (1 - p) ** (length - 1) for length in range(1, longest + 1)]
    for length in range(1, longest):
        u -= shares[length - 1] / sum(shares)
        if u < 0:
            return length
    return longest


def naive_choice(ids, starts, vocabulary, config, key):
    """Places of a row's slots, found one word after the other."""
    left = budget_of(ids, vocabulary, config)
    hashed = {place: int(rng.keyed(SEED, CHOICE, *key, place)) for place in range(len(ids))}
    if config.strategy == "token":
        ordinary = [
            p for p, token in enumerate(ids.tolist()) if token not in vocabulary.special_ids
        ]
        return sorted(sorted(ordinary, key=lambda place: hashed[place])[:left])
    words = words_of(ids, starts, vocabulary)
    order = sorted(range(len(words)), key=lambda number: hashed[words[number][0]])
    taken = set()
    for i, first in enumerate(order):
        length = 1
        if config.strategy == "span":
            u = float(rng.uniform(SEED, LENGTH, *key, i))
            length = length_at(u, config.span_p, config.span_max_words)
        for number in range(first, min(first + length, len(words))):
            if number in taken:
                continue
            if len(words[number]) > left:
                break
            taken.add(number)
            left -= len(words[number])
    return sorted(place for number in taken for place in words[number])


SPANS = ((0.05, 10), (0.5, 3), (0.99, 10), (0.2, 1), (1.0, 10))


@pytest.mark.parametrize(
    "config",
    [
        *(settings(s, fraction=part) for s in STRATEGIES for part in (0.01, 0.15, 0.5, 0.9)),
        *(settings("span", span_p=p, span_max_words=most, fraction=0.4) for p, most in SPANS),
    ],
    ids=str,
)
def test_slots_are_those_that_a_loop_over_words_finds(vocabulary, make_rows, config):
    for length, longest in ((8, 2), (33, 6), (64, 3)):
        rows = make_rows(40, length, seed=length, longest_word=longest, tails=False)
        chosen = chosen_of(masked(rows, vocabulary, config, epoch=2))
        for row, places in enumerate(chosen):
            naive = naive_choice(
                rows.input_ids[row], rows.word_starts[row], vocabulary, config, (2, row * 7 + 3)
            )
            assert places == naive


def test_span_lengths_have_the_mean_and_the_longest_of_the_spanbert_paper():
    drawn = lengths_of_spans(version=2)
    law = np.array([0.2 * 0.8**i for i in range(10)])
    law *= len(drawn) / law.sum()
    counts = np.bincount(drawn, minlength=11)[1:]
    assert len(counts) == 10
    assert ((counts - law) ** 2 / law).sum() < 27.9  # 99.9 % of chi squared with 9 degrees
    assert drawn.mean() == pytest.approx(3.8, abs=0.02)


def test_runs_of_before_keep_their_span_lengths():
    drawn = lengths_of_spans(version=1)
    assert drawn.max() == 10 and drawn.mean() == pytest.approx(4.464, abs=0.02)
    u = rng.uniform(SEED, LENGTH, 0, 0, np.arange(100))
    expected = [min(10, 1 + math.floor(math.log(1 - each) / math.log(0.8))) for each in u]
    assert drawn[:100].tolist() == expected


def lengths_of_spans(version):
    where = (np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
    lengths = _span_lengths(SEED, where, settings("span"), version)
    return lengths(np.zeros(1, dtype=np.int64), np.arange(200_000))[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_shown_in_a_slot_follows_from_its_key(vocabulary, make_rows, strategy):
    rows = make_rows(40, 48)
    config = settings(strategy, fraction=0.5, mask_share=0.5, random_share=0.3)
    batch = masked(rows, vocabulary, config, epoch=4)
    pool = [token for token in range(vocabulary.size) if token not in vocabulary.special_ids]
    for row, places in enumerate(chosen_of(batch)):
        for place in places:
            key = (4, row * 7 + 3, place)
            shown = float(rng.uniform(SEED, SHOWN, *key))
            expected = int(rows.input_ids[row, place])
            if shown < 0.5:
                expected = vocabulary.mask_id
            elif shown < 0.8:
                expected = pool[int(float(rng.uniform(SEED, DRAWN, *key)) * len(pool))]
            assert int(batch.input_ids[row, place]) == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_tail_of_a_word_that_the_row_before_cut_is_never_masked(
    vocabulary, make_rows, strategy
):
    config = settings(strategy, fraction=0.6)
    rows = make_rows(90, 32)
    batch = masked(rows, vocabulary, config)
    tails = slots_after_tails = 0
    for row, places in enumerate(chosen_of(batch)):
        starts = np.flatnonzero(rows.word_starts[row])
        first = starts[0] if len(starts) else rows.input_ids.shape[1]
        tail = [p for p in range(first) if rows.input_ids[row, p] not in vocabulary.special_ids]
        tails += bool(tail)
        slots_after_tails += len(places) if tail else 0
        assert not set(places) & set(tail)
        words = words_of(rows.input_ids[row, first:], rows.word_starts[row, first:], vocabulary)
        if strategy != "token":
            assert all(
                {p + first for p in word} <= set(places)
                or not {p + first for p in word} & set(places)
                for word in words
            )
    assert tails > 20
    assert slots_after_tails > 0


def test_the_tail_of_a_cut_word_does_not_belong_to_the_word_after_it(vocabulary):
    ids = np.array([[2, 10, 11, 12, 13, 3]])
    starts = np.array([[False, False, False, True, True, False]])
    batch = mask_rows(
        ids,
        starts,
        np.array([0]),
        np.array([0]),
        seed=0,
        vocabulary=vocabulary,
        config=settings("whole_word", fraction=0.9),
    )
    assert chosen_of(batch) == [[3, 4]]
    words = batch.slot_words[batch.labels != IGNORE_INDEX].tolist()
    assert len(set(words)) == 2
