"""The order of rows: what an epoch is, random access, windows, and the shares of ranks."""

import hashlib
from itertools import combinations

import numpy as np
import pytest

from fitb.base.world import World
from fitb.data.order import rows_at, windows_between
from fitb.data.stream import positions_of_rank

UNEVEN = (7, 1, 30, 12, 3, 19, 8)


def order(begin, end, shard_rows=UNEVEN, seed=0, window_shards=3):
    positions = np.arange(begin, end, dtype=np.int64)
    return rows_at(positions, shard_rows=shard_rows, seed=seed, window_shards=window_shards)


@pytest.mark.parametrize("window_shards", [1, 2, 3, 6, 7, 8, 1000])
@pytest.mark.parametrize(
    "shard_rows", [UNEVEN, (5,), (1,), (1, 1, 1), (4, 0, 4), (0, 3), (100, 1), (2,) * 17]
)
def test_one_epoch_reads_every_row_exactly_once(shard_rows, window_shards):
    num_rows = sum(shard_rows)
    for epoch in range(3):
        begin, end = epoch * num_rows, (epoch + 1) * num_rows
        epochs, rows = order(begin, end, shard_rows, 0, window_shards)
        assert (epochs == epoch).all()
        assert epochs.dtype == rows.dtype == np.int64
        assert np.array_equal(np.sort(rows), np.arange(num_rows))


@pytest.mark.parametrize("window_shards", [1, 3, 100])
def test_positions_may_come_in_any_order_and_more_than_once(window_shards):
    end = 3 * sum(UNEVEN) + 11
    epochs, rows = order(0, end, window_shards=window_shards)
    draw = np.random.default_rng(0)
    slices = [np.arange(*sorted(draw.integers(0, end + 1, 2))) for _ in range(50)]
    for positions in (*slices, np.arange(0), draw.integers(0, end, 300)):
        some = rows_at(positions, shard_rows=UNEVEN, seed=0, window_shards=window_shards)
        assert np.array_equal(some[0], epochs[positions])
        assert np.array_equal(some[1], rows[positions])


def test_every_epoch_and_every_seed_has_its_own_order():
    num_rows = sum(UNEVEN)
    orders = {
        tuple(order(e * num_rows, (e + 1) * num_rows, seed=seed)[1].tolist())
        for e in range(10)
        for seed in range(10)
    }
    assert len(orders) == 100


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 48])
def test_the_shares_of_ranks_in_turn_are_the_global_batch(size):
    for step in (0, 1, 17, 10**9):
        shares = [positions_of_rank(step, 48, World(rank, size)) for rank in range(size)]
        assert {len(share) for share in shares} <= {48 // size, -(-48 // size)}
        assert np.array_equal(np.concatenate(shares), np.arange(step * 48, (step + 1) * 48))


def test_the_order_of_many_settings_is_pinned_to_the_bit():
    """The digest is that of the first form of the code: written plainly, before it was fast."""
    digest = hashlib.sha256()
    for shard_rows, window_shards, begin, size in (
        (UNEVEN, 3, 0, 200),
        ((4, 0, 4), 1, 0, 40),
        ((65536,) * 300, 16, 3 * 10**9 + 5, 4096),
        ((10**9, 10**9 + 7), 2, 10**15, 100),
        ((5000, 1, 77, 65536), 2, 60000, 200000),
    ):
        for seed in (0, 7, -1):
            for part in order(begin, begin + size, shard_rows, seed, window_shards):
                digest.update(part.astype("<i8").tobytes())
    assert digest.hexdigest() == "fcdd83d7c5432b472a724f37b669d0c137f8c423ccbf8f3f6aae54e4219e035b"


def test_an_array_of_sizes_that_changes_afterwards_is_not_remembered():
    sizes = np.array(UNEVEN, np.int32)
    order(0, 80, shard_rows=sizes)
    sizes[:] = sizes[::-1]
    fresh = order(0, 80, shard_rows=UNEVEN[::-1])
    assert np.array_equal(order(0, 80, shard_rows=sizes)[1], fresh[1])


@pytest.mark.parametrize("window_shards", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize("seed", [0, 9])
def test_the_rows_of_a_window_come_from_its_shards_and_no_other(window_shards, seed):
    num_rows = sum(UNEVEN)
    settings = {"shard_rows": UNEVEN, "seed": seed, "window_shards": window_shards}
    for epoch in (0, 1, 10**6):
        begin, shards = epoch * num_rows, []
        windows = list(windows_between(begin, begin + num_rows, **settings))
        for end, numbers in windows:
            rows = order(begin, end, **settings)[1]
            found = np.searchsorted(np.cumsum(UNEVEN), rows, side="right")
            assert set(found) == set(numbers.tolist())
            begin, shards = end, shards + numbers.tolist()
        assert begin == (epoch + 1) * num_rows
        assert sorted(shards) == list(range(len(UNEVEN)))
        sizes = [len(numbers) for _, numbers in windows]
        assert sizes[:-1] == [window_shards] * (len(sizes) - 1) and sizes[-1] <= window_shards


def test_windows_of_a_range_are_those_of_its_epochs_that_meet_it():
    settings = {"shard_rows": UNEVEN, "seed": 4, "window_shards": 2}
    ends = [each for each, _ in windows_between(0, 400, **settings)]
    places = sorted({0, 1, *(end + off for end in ends[:9] for off in (-1, 0, 1))})
    for begin, end in combinations(places, 2):
        first, last = np.searchsorted(ends, [begin, end - 1], side="right")
        found = [each for each, _ in windows_between(begin, end, **settings)]
        assert found == ends[first : last + 1], (begin, end)


def test_writing_into_a_window_changes_no_later_one():
    settings = {"shard_rows": UNEVEN, "seed": 0, "window_shards": 3}
    _, before = next(windows_between(0, 1, **settings))
    expected = before.tolist()
    before[:] = -1
    assert next(windows_between(0, 1, **settings))[1].tolist() == expected
