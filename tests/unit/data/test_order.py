"""The order of rows: what an epoch is, random access, windows, and the shares of ranks."""

import numpy as np
import pytest

from fitb.data.order import rows_at
from fitb.data.stream import positions_of_rank
from fitb.world import World

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
        assert np.array_equal(np.sort(rows), np.arange(num_rows))


def test_epochs_and_rows_are_whole_numbers_of_64_bits():
    epochs, rows = order(0, 10)
    assert epochs.dtype == rows.dtype == np.int64
    assert epochs.shape == rows.shape == (10,)


def test_no_position_asks_for_no_row():
    epochs, rows = order(5, 5)
    assert len(epochs) == len(rows) == 0


@pytest.mark.parametrize("window_shards", [1, 3, 100])
def test_any_slice_of_the_order_is_reached_at_once(window_shards):
    end = 3 * sum(UNEVEN) + 11
    epochs, rows = order(0, end, window_shards=window_shards)
    draw = np.random.default_rng(0)
    for _ in range(50):
        begin, stop = np.sort(draw.integers(0, end + 1, 2))
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


def test_the_order_is_not_that_of_the_files():
    rows = order(0, 1000, shard_rows=(500, 500))[1]
    assert (np.diff(rows) == 1).mean() < 0.05


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


def test_the_rows_of_a_window_are_mixed_with_each_other():
    shard = order(0, 2000, shard_rows=(1000, 1000), window_shards=2)[1] // 1000
    assert 400 < (np.diff(shard) != 0).sum() < 1600


@pytest.mark.parametrize("global_batch", [4, 16, 48, 200])
def test_batches_across_the_end_of_an_epoch_drop_and_repeat_nothing(global_batch):
    num_rows = sum(UNEVEN)
    steps = 4 * num_rows // global_batch + 1
    found = [
        rows_at(
            positions_of_rank(step, global_batch, World()),
            shard_rows=UNEVEN,
            seed=3,
            window_shards=2,
        )
        for step in range(steps)
    ]
    epochs, rows = (np.concatenate(part) for part in zip(*found, strict=True))
    for epoch in range(3):
        assert np.array_equal(np.sort(rows[epochs == epoch]), np.arange(num_rows))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_the_shares_of_ranks_in_turn_are_the_global_batch(size):
    for step in (0, 1, 17, 10**9):
        shares = [positions_of_rank(step, 48, World(rank, size)) for rank in range(size)]
        assert {len(share) for share in shares} == {48 // size}
        assert np.array_equal(np.concatenate(shares), np.arange(step * 48, (step + 1) * 48))


def test_the_order_of_a_seed_is_pinned():
    """A change here is a change of every run's order."""
    assert order(0, 8, shard_rows=(4, 4), window_shards=2)[1].tolist() == [0, 1, 2, 6, 3, 4, 7, 5]
