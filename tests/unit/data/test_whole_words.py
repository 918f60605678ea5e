"""Every word has its share of the masks, whatever its number of subwords."""

import itertools

import numpy as np
import pytest

from fitb.base import rng
from fitb.data.whole_words import _largest_set, equal_shares

ENGLISH = [0.8, 0.11, 0.05, 0.025, 0.01, 0.005]  # share of words of 1, 2, ... subwords
SPLIT = [0.3, 0.25, 0.2, 0.1, 0.1, 0.05]


def rows_of_words(num_rows, length, shares, seed=0):
    """Sizes of words that fill rows: (num_rows, W) int64, 0 behind the last."""
    draw = np.random.default_rng(seed)
    sizes = draw.choice(len(shares), p=shares, size=(num_rows, length)) + 1
    ends = np.cumsum(sizes, axis=1)
    return np.where(ends <= length - 2, sizes, 0)


def keys(sizes, epoch):
    rows, words = np.indices(sizes.shape)
    return rng.keyed(7, epoch, rows, words)


def naive(key, sizes, budget):
    """The choice for one row, word after word."""
    words = [word for word, size in enumerate(sizes) if 0 < size <= budget]
    total = sum(sizes[word] for word in words)
    if total <= budget:
        return set(words)
    words.sort(key=lambda word: (-sizes[word], key[word] >> 16))
    share, taken, open_word, part = budget / total, set(), None, 0.0
    for word in (word for word in words if sizes[word] > 1):
        size = sizes[word]
        if open_word is None:
            open_word, part = word, share
            continue
        held = sizes[open_word]
        room, mass, gives, takes = held * (1 - part), held * part, size * share, size * (1 - share)
        forth, back = min(room, gives), min(mass, takes)
        if float(rng.uniform(15, np.uint64(key[word]))) * (forth + back) < back:
            if room <= gives:
                taken.add(open_word)
                open_word, part = word, share - room / size
            else:
                part += gives / held
        elif mass <= takes:
            open_word, part = word, share + mass / size
        else:
            taken.add(word)
            part -= takes / held
    left = budget - sum(sizes[word] for word in taken)
    singles = [word for word in words if sizes[word] == 1]
    if open_word is not None and 0 <= left - sizes[open_word] <= len(singles):
        forced = left > len(singles)
        if forced or float(rng.uniform(16, np.uint64(key[open_word]))) < part:
            taken.add(open_word)
            left -= sizes[open_word]
    return taken | set(singles[:left]) if left <= len(singles) else None


@pytest.mark.parametrize("shares", [ENGLISH, SPLIT])
def test_words_are_those_that_a_loop_over_words_chooses(shares):
    sizes = rows_of_words(400, 64, shares)
    budget = np.random.default_rng(1).integers(1, 40, len(sizes))
    key = keys(sizes, 0)
    found = equal_shares(key, sizes, budget)
    compared = 0
    for row in range(len(sizes)):
        expected = naive(key[row].tolist(), sizes[row].tolist(), int(budget[row]))
        if expected is not None:  # else a set was searched, which has a test of its own
            assert set(np.flatnonzero(found[row]).tolist()) == expected
            compared += 1
    assert compared > 300


@pytest.mark.parametrize("fraction", [0.15, 0.3])
@pytest.mark.parametrize("shares", [ENGLISH, SPLIT])
def test_a_word_of_any_size_is_chosen_as_often_as_others_and_the_budget_is_exact(shares, fraction):
    sizes = rows_of_words(1000, 128, shares)
    budget = np.full(len(sizes), round(fraction * 126))
    chosen = np.zeros(sizes.shape)
    for epoch in range(40):
        found = equal_shares(keys(sizes, epoch), sizes, budget)
        assert np.array_equal((found * sizes).sum(axis=1), budget)
        assert not found[sizes == 0].any()
        chosen += found
    mean = chosen[sizes > 0].mean()
    for size in range(1, 7):
        assert chosen[sizes == size].mean() == pytest.approx(mean, rel=0.1)


def test_words_above_the_budget_are_never_chosen_and_others_fill_it():
    sizes = np.array([[9, 1, 2, 1, 30, 2, 1]])
    for epoch in range(200):
        found = equal_shares(keys(sizes, epoch), sizes, np.array([4]))[0]
        assert (found * sizes[0]).sum() == 4
        assert not found[[0, 4]].any()


def test_a_row_with_fewer_tokens_than_its_budget_is_masked_whole():
    sizes = np.array([[3, 1, 0], [2, 2, 1]])
    found = equal_shares(keys(sizes, 0), sizes, np.array([9, 5]))
    assert found.tolist() == [[True, True, False], [True, True, True]]


def test_as_many_tokens_are_chosen_as_any_set_of_words_has():
    """Against all sets: few words, of which often none is a single token."""
    draw = np.random.default_rng(3)
    for _ in range(300):
        sizes = draw.integers(2, 7, (1, 6))
        budget = int(draw.integers(1, 20))
        found = equal_shares(keys(sizes, int(draw.integers(1000))), sizes, np.array([budget]))
        sets = itertools.product([0, 1], repeat=6)
        sums = [int(np.dot(sizes[0], each)) for each in sets]
        assert (found * sizes).sum() == max(total for total in sums if total <= budget)


def test_the_search_for_a_set_reaches_every_word():
    sizes = np.array([2, 3, 5, 4, 1])
    reached = np.zeros(5, dtype=bool)
    for epoch in range(50):
        found = _largest_set(keys(sizes[None], epoch)[0], sizes, 7)
        assert sizes[found].sum() == 7
        reached |= found
    assert reached.all()
