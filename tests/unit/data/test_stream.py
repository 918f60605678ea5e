"""Micro-batches from a step number: the same rows however they are shared, cut or read ahead."""

import threading
import time
from dataclasses import fields

import pytest
import torch

from fitb.config import MaskConfig
from fitb.data.masking import Batch
from fitb.data.stream import RowStream
from fitb.errors import DataError
from fitb.world import World


@pytest.fixture
def make_stream(vocabulary, make_shards):
    def make(rank=0, size=1, micro_batch=2, prefetch_steps=0, shards=None):
        return RowStream(
            shards or make_shards(),
            vocabulary=vocabulary,
            mask=MaskConfig(strategy="span", fraction=0.3),
            world=World(rank, size),
            global_batch=8,
            micro_batch=micro_batch,
            window_shards=2,
            prefetch_steps=prefetch_steps,
            seed=4,
        )

    return make


def joined(micro_batches):
    return Batch(*(torch.cat([getattr(b, f.name) for b in micro_batches]) for f in fields(Batch)))


def same(a, b):
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("micro_batch", [1, 2, 4, 8])
def test_the_micro_batches_of_all_ranks_are_one_big_batch(make_stream, size, micro_batch):
    if 8 % (size * micro_batch):
        micro_batch = 8 // size
    for step in (0, 2, 3, 50):  # an epoch is three steps
        whole = make_stream(micro_batch=8).micro_batches(step)
        assert len(whole) == 1
        parts = []
        for rank in range(size):
            mine = make_stream(rank, size, micro_batch).micro_batches(step)
            assert [len(batch.labels) for batch in mine] == [micro_batch] * (
                8 // size // micro_batch
            )
            parts += mine
        assert same(joined(parts), whole[0])


def test_a_rank_reads_only_its_own_rows(make_stream, make_shards):
    asked = []
    for rank in range(4):
        shards = make_shards()
        make_stream(rank, 4, shards=shards).micro_batches(1)
        asked += sum(shards.asked, [])
        assert len(sum(shards.asked, [])) == 2
    whole = make_shards()
    make_stream(shards=whole).micro_batches(1)
    assert asked == sum(whole.asked, [])


@pytest.mark.parametrize("prefetch_steps", [0, 1, 3, 100])
def test_reading_ahead_changes_nothing(make_stream, prefetch_steps):
    stream = make_stream(prefetch_steps=prefetch_steps)
    steps = list(stream.iter_from(0, 7))
    assert [step for step, _ in steps] == list(range(7))
    for step, micro_batches in steps:
        assert same(joined(micro_batches), joined(make_stream().micro_batches(step)))


@pytest.mark.parametrize("begin", [0, 1, 3, 5, 6])
def test_entering_at_a_step_gives_the_rest_of_the_whole(make_stream, begin):
    whole = list(make_stream(prefetch_steps=2).iter_from(0, 6))[begin:]
    tail = list(make_stream(prefetch_steps=2).iter_from(begin, 6))
    assert [step for step, _ in tail] == [step for step, _ in whole]
    for (_, a), (_, b) in zip(tail, whole, strict=True):
        assert same(joined(a), joined(b))


def test_entering_again_and_again_inside_an_epoch_does_not_drift(make_stream):
    whole = [joined(batches) for _, batches in make_stream().iter_from(0, 9)]
    step, pieces = 0, []
    while step < 9:
        pieces += [
            joined(batches) for _, batches in make_stream().iter_from(step, min(step + 2, 9))
        ]
        step = len(pieces)
    assert all(same(a, b) for a, b in zip(pieces, whole, strict=True))


def test_so_many_steps_are_read_ahead_and_no_more(make_stream, make_shards):
    shards = make_shards()
    stream = make_stream(prefetch_steps=2, shards=shards).iter_from(0, 50)
    next(stream)
    deadline = time.monotonic() + 5
    while len(shards.asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # for a read too many to show
    assert len(shards.asked) == 3
    stream.close()


def test_an_error_in_reading_surfaces_at_its_step(make_stream, make_shards):
    shards = make_shards()
    make_stream(shards=shards).micro_batches(4)
    shards.broken_row, shards.error = shards.asked[0][-1], DataError("the shard is torn")
    first = next(s for s in range(5) if shards.broken_row in reads(make_stream, make_shards, s))
    seen = []
    with pytest.raises(DataError, match="the shard is torn"):
        for step, _ in make_stream(prefetch_steps=3, shards=shards).iter_from(0, 9):
            seen.append(step)
    assert seen == list(range(first))


def reads(make_stream, make_shards, step):
    shards = make_shards()
    make_stream(shards=shards).micro_batches(step)
    return shards.asked[0]


def test_leaving_early_leaves_no_thread_behind(make_stream):
    for _ in make_stream(prefetch_steps=3).iter_from(0, 50):
        break
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("fitb-rows")]


def test_time_spent_waiting_is_counted(make_stream, make_shards):
    shards = make_shards()
    read, ready = shards.read, threading.Event()

    def slow(rows):
        ready.wait(0.05)
        return read(rows)

    shards.read = slow
    stream = make_stream(shards=shards)
    list(stream.iter_from(0, 2))
    assert stream.waited_s >= 0.09
