"""The order of rows: what an epoch is, random access, windows, and the shares of ranks."""

import hashlib
from itertools import islice

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
        epochs, rows = order(
            epoch * num_rows,
            (epoch + 1) * num_rows,
            shard_rows=shard_rows,
            window_shards=window_shards,
        )
        assert (epochs == epoch).all()
        assert epochs.dtype == rows.dtype == np.int64
        assert np.array_equal(np.sort(rows), np.arange(num_rows))


@pytest.mark.parametrize("window_shards", [1, 3, 100])
def test_any_slice_of_the_order_is_reached_at_once(window_shards):
    end = 3 * sum(UNEVEN) + 11
    epochs, rows = order(0, end, window_shards=window_shards)
    draw = np.random.default_rng(0)
    for begin, stop in [(5, 5), *np.sort(draw.integers(0, end + 1, (50, 2)))]:
        some = order(begin, stop, window_shards=window_shards)
        assert np.array_equal(some[0], epochs[begin:stop])
        assert np.array_equal(some[1], rows[begin:stop])


def test_positions_may_come_in_any_order_and_more_than_once():
    epochs, rows = order(0, 200)
    positions = np.random.default_rng(1).integers(0, 200, 300)
    some = rows_at(positions, shard_rows=UNEVEN, seed=0, window_shards=3)
    assert np.array_equal(some[0], epochs[positions])
    assert np.array_equal(some[1], rows[positions])


def test_a_position_far_away_costs_no_memory():
    shard_rows = (10**9, 10**9 + 7)
    begin = 10**15
    epochs, rows = order(begin, begin + 100, shard_rows=shard_rows)
    assert (epochs == begin // sum(shard_rows)).all()
    assert len(set(rows.tolist())) == 100


def test_every_epoch_and_every_seed_has_its_own_order():
    num_rows = sum(UNEVEN)
    orders = {
        tuple(order(e * num_rows, (e + 1) * num_rows, seed=seed)[1].tolist())
        for e in range(10)
        for seed in range(10)
    }
    assert len(orders) == 100


@pytest.mark.parametrize("window_shards", [1, 2, 3, 5])
def test_the_rows_of_a_window_come_from_so_many_shards_and_no_other(window_shards):
    ends = np.cumsum(UNEVEN)
    for seed in range(5):
        rows = order(0, sum(UNEVEN), seed=seed, window_shards=window_shards)[1]
        shard = np.searchsorted(ends, rows, side="right")
        begin, seen = 0, set()
        while begin < len(shard):
            window = list(dict.fromkeys(shard[begin:]))[:window_shards]
            size = sum(UNEVEN[number] for number in window)
            assert set(shard[begin : begin + size]) <= set(window)
            assert not seen & set(window)
            seen |= set(window)
            begin += size
        assert seen == set(range(len(UNEVEN)))


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


def windows_by_rows(position, num_windows, shard_rows, seed, window_shards):
    """The same windows, found by reading every row from the beginning of the epoch on."""
    num_rows, ends = sum(shard_rows), np.cumsum(shard_rows)
    begin = position // num_rows * num_rows
    found = []
    while len(found) < num_windows:
        rows = order(begin, (begin // num_rows + 1) * num_rows, shard_rows, seed, window_shards)[1]
        shards = np.searchsorted(ends, rows, side="right")
        window = list(dict.fromkeys(shards.tolist()))[:window_shards]
        begin += sum(shard_rows[number] for number in window)
        if begin > position:
            found.append(set(window))
    return found


@pytest.mark.parametrize("window_shards", [1, 2, 3, 7, 100])
def test_windows_hold_the_shards_of_the_rows_from_a_position_on(window_shards):
    for seed in (0, 9):
        settings = {"shard_rows": UNEVEN, "seed": seed, "window_shards": window_shards}
        for position in (0, 1, 40, 79, 80, 81, 200, 399, 10**6 + 13):
            found = list(islice(windows_between(position, 10**9, **settings), 12))
            expected = windows_by_rows(position, 12, **settings)
            assert [set(window.tolist()) for _, window in found] == expected


@pytest.mark.parametrize("begin", [0, 1, 7, 79, 80, 300])
def test_the_rows_of_a_position_lie_in_the_shards_of_its_window(begin):
    settings = {"shard_rows": UNEVEN, "seed": 4, "window_shards": 2}
    windows = list(windows_between(begin, begin + 160, **settings))
    ends = [end for end, _ in windows]
    assert ends[-2] < begin + 160 <= ends[-1] and ends == sorted(set(ends))
    rows = order(begin, begin + 160, seed=4, window_shards=2)[1]
    for position, row in enumerate(rows, begin):
        shard = np.searchsorted(np.cumsum(UNEVEN), row, side="right")
        assert shard in next(numbers for end, numbers in windows if end > position)


def test_writing_into_a_window_changes_no_later_one():
    settings = {"shard_rows": UNEVEN, "seed": 0, "window_shards": 3}
    _, before = next(windows_between(0, 1, **settings))
    expected = before.tolist()
    before[:] = -1
    assert next(windows_between(0, 1, **settings))[1].tolist() == expected
