"""Keyed randomness against splitmix64 in plain integers, and what permutations must be."""

import numpy as np
import pytest

from fitb.base import rng

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15
# Outputs of the published splitmix64 generator, the first for seeds 0 and 1234567.
PUBLISHED = {0: 0xE220A8397B1DCDAF, 1234567: 6457827717110365317}
SIZES = [*range(1, 71), 97, 127, 128, 129, 251, 255, 256, 257, 1009, 1023, 1024, 1025]


def finalise(state):
    """Figure 17 of Steele, Lea and Flood 2014, with integers that do not wrap by themselves."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % WORD
    return state ^ (state >> 31)


def keyed_slowly(seed, *parts):
    state = finalise((seed + GOLDEN) % WORD)
    for part in parts:
        state = finalise(((state ^ part) + GOLDEN) % WORD)
    return state


@pytest.mark.parametrize(("seed", "first"), PUBLISHED.items())
def test_the_mixer_gives_the_published_outputs_of_splitmix64(seed, first):
    assert int(rng.keyed(seed)) == first


def test_keys_equal_the_hash_written_with_plain_integers():
    for seed in (0, 1, 2**63, 2**64 - 1, -1, 12345678901234567890123):
        for parts in ((), (0,), (1, 2, 3), (2**40, 0, 7)):
            assert int(rng.keyed(seed, *parts)) == keyed_slowly(seed % WORD, *parts)


def test_a_change_of_the_hash_would_change_the_order_of_every_run_and_is_noticed():
    assert int(rng.keyed(0, 1, 2)) == 6768782832058643234
    assert int(rng.keyed(-1, 5)) == 3846658174030194800
    assert float(rng.uniform(7, 1, 2, 3)) == 0.10123025561781762
    assert int(rng.keyed(3, 11, 4, 7)) == keyed_slowly(3, 11, 4, 7)


def test_parts_broadcast_as_arrays_do():
    rows, places = np.arange(5)[:, None], np.arange(7)[None]
    table = rng.keyed(9, 2, rows, places)
    assert table.shape == (5, 7)
    assert table.dtype == np.uint64
    for row in range(5):
        for place in range(7):
            assert int(table[row, place]) == keyed_slowly(9, 2, row, place)


def test_uniform_numbers_are_spread_evenly_over_the_half_open_unit_interval():
    numbers = rng.uniform(1, np.arange(200_000))
    assert numbers.dtype == np.float64 and numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 * (1 / 12 / len(numbers)) ** 0.5
    counts = np.bincount((numbers * 100).astype(int), minlength=100)
    chi_square = ((counts - 2000.0) ** 2 / 2000.0).sum()
    assert 40 < chi_square < 180  # 99 degrees of freedom, one in a million outside


def test_uniform_numbers_of_neighbouring_keys_are_not_correlated():
    numbers = rng.uniform(1, np.arange(100_001))
    seeds = rng.uniform(2, np.arange(100_001))
    for a, b in ((numbers[1:], numbers[:-1]), (numbers, seeds)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(a) ** 0.5


@pytest.mark.parametrize("key", [0, 1, 2**64 - 1])
def test_permute_is_a_bijection_at_every_size(key):
    for size in SIZES:
        image = rng.permute(np.arange(size), size, key)
        assert image.dtype == np.int64
        assert np.array_equal(np.sort(image), np.arange(size)), size


def test_permute_reaches_any_place_of_a_huge_range_without_a_table():
    size = 10**15
    index = np.array([0, 1, size // 2, size - 1])
    image = rng.permute(index, size, key=3)
    assert len(set(image.tolist())) == 4
    assert image.min() >= 0
    assert image.max() < size


def test_permute_keeps_shapes_and_agrees_with_itself_one_at_a_time():
    whole = rng.permute(np.arange(60).reshape(3, 4, 5), 60, key=11)
    assert whole.shape == (3, 4, 5)
    one_by_one = [int(rng.permute(i, 60, key=11)) for i in range(60)]
    assert rng.permute(7, 60, key=11).shape == ()
    assert whole.ravel().tolist() == one_by_one
    backwards = rng.permute(np.arange(60)[::-1], 60, key=11)
    assert backwards[::-1].tolist() == one_by_one


def test_permute_of_known_keys_gives_the_pinned_order_and_leaves_its_argument():
    index = np.arange(10, dtype=np.uint64)
    assert rng.permute(index, 10, key=3).tolist() == [3, 7, 9, 8, 6, 1, 4, 5, 0, 2]
    assert index.tolist() == list(range(10))


def test_a_permuted_place_falls_anywhere_about_equally_often():
    size, num_keys = 40, 3000
    places = np.array([rng.permute(np.arange(3), size, int(rng.keyed(1, k))) for k in range(3000)])
    for place in range(3):
        counts = np.bincount(places[:, place], minlength=size)
        share = counts / num_keys * size
        assert share.min() > 0.5
        assert share.max() < 1.5
