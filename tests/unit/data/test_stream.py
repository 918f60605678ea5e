"""Micro-batches from a step number: the same rows however they are shared, cut or read ahead."""

import threading
import time
from dataclasses import fields

import numpy as np
import pytest
import torch
from file_server import FileServer

from fitb.base.errors import ConfigError, DataError
from fitb.base.world import World
from fitb.config import MaskConfig
from fitb.data.batch import Batch
from fitb.data.order import windows_between
from fitb.data.stream import RowStream, bytes_ahead
from fitb.shards.cache import CacheSettings
from fitb.shards.shard_set import ShardSet
from tests.unit.shards.shard_files import random_columns, write_set


@pytest.fixture
def make_stream(vocabulary, make_shards):
    def make(rank=0, size=1, prefetch_steps=0, shards=None):
        return RowStream(
            shards or make_shards(),
            vocabulary=vocabulary,
            mask=MaskConfig(strategy="span", fraction=0.3),
            world=World(rank, size),
            global_batch=8,
            window_shards=2,
            prefetch_steps=prefetch_steps,
            seed=4,
        )

    return make


def same(whole, *parts):
    """Whether a batch is its parts, one after the other."""
    tensors = [f.name for f in fields(Batch)[:-2]]
    equal = [
        torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
        for name in tensors
    ]
    padded = whole.padded == any(part.padded for part in parts)
    return all(equal) and padded and whole.rows.tolist() == [n for p in parts for n in p.rows]


def wait_for(condition, limit_s=30):
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_rows_that_are_late_are_given_up_when_the_rank_is_told_to_leave(make_stream, monkeypatch):
    """It would not save before they came, and a preemption does not wait for them."""
    stream, told, held = make_stream(prefetch_steps=0), threading.Event(), threading.Event()
    batch = stream.batch
    monkeypatch.setattr(stream, "batch", lambda step: (step < 2 or held.wait(30)) and batch(step))
    threading.Timer(0.3, told.set).start()
    got = []
    for step, rows in stream.iter_from(0, 9, told.is_set):
        got.append((step, rows is None))
        if rows is None:
            held.set()
    assert got == [(0, False), (1, False), (2, True)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_shares_of_all_ranks_are_one_big_batch_and_each_reads_its_own(
    make_stream, make_shards, size
):
    for step in (0, 2, 3, 50):  # an epoch is three steps
        whole, *own = (make_shards() for _ in range(1 + size))
        batch = make_stream(shards=whole).batch(step)
        shares = [make_stream(r, size, shards=own[r]).batch(step) for r in range(size)]
        assert [len(share.labels) for share in shares] == [8 // size] * size
        assert same(batch, *shares)
        assert [row for shards in own for row in shards.asked[0]] == whole.asked[0]


@pytest.mark.parametrize(
    ("begin", "prefetch_steps"), [(0, 0), (0, 1), (0, 100), (1, 2), (3, 3), (6, 2), (7, 2)]
)
def test_neither_reading_ahead_nor_the_first_step_changes_a_batch(
    make_stream, begin, prefetch_steps
):
    stream = make_stream(prefetch_steps=prefetch_steps)
    steps = list(stream.iter_from(begin, 7))
    assert [step for step, _ in steps] == list(range(begin, 7))
    for step, batch in steps:
        assert same(batch, make_stream().batch(step))
    assert begin == 7 or stream.waited_s > 0


def test_so_many_steps_are_read_ahead_and_no_more(make_stream, make_shards):
    shards = make_shards()
    stream = make_stream(prefetch_steps=2, shards=shards).iter_from(0, 50)
    next(stream)
    wait_for(lambda: len(shards.asked) >= 3)
    time.sleep(0.1)  # for a read too many to show
    assert len(shards.asked) == 3
    stream.close()


def test_an_error_in_reading_surfaces_at_its_step(make_stream, make_shards):
    shards = make_shards()
    make_stream(shards=shards).batch(2)
    shards.broken_row = shards.asked[0][-1]  # an epoch is three steps, so it comes in none before
    seen = []
    with pytest.raises(DataError, match="the shard is torn"):
        for step, _ in make_stream(prefetch_steps=3, shards=shards).iter_from(0, 9):
            seen.append(step)
    assert seen == [0, 1]


def test_leaving_early_leaves_no_thread_behind(make_stream):
    for _ in make_stream(prefetch_steps=3).iter_from(0, 50):
        break
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("fitb-rows")]


SHARD_ROWS = (5, 1, 9, 3, 6)  # as in memory: an epoch is three steps, and three windows of two


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A shard set of a few rows, on disk."""
    folder = tmp_path_factory.mktemp("rows") / "set"
    folder.mkdir()
    columns = random_columns(sum(SHARD_ROWS), 16, 60)
    write_set(folder, columns, SHARD_ROWS, vocab_size=60)
    return folder


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr("fitb.shards.remote.FIRST_WAIT_S", 0.02)
    with FileServer(folder) as serving:
        yield serving


@pytest.fixture
def open_remote(server, folder, tmp_path):
    """Open the set on the server, through a cache that holds two windows and no more."""

    def open_it(deadline_s=30.0):
        room = bytes_ahead(ShardSet.open(folder, "train").shard_bytes, 2)
        settings = CacheSettings(str(tmp_path / "cache"), room / 1e9, deadline_s)
        return ShardSet.open(server.url, "train", settings, max_mapped=2)

    return open_it


def windows():
    """Of nine steps."""
    return list(windows_between(0, 72, shard_rows=SHARD_ROWS, seed=4, window_shards=2))


def test_the_next_window_is_fetched_ahead_and_no_other(make_stream, open_remote, server):
    spans = windows()
    stream = make_stream(shards=open_remote()).iter_from(0, 9)
    expected = {f"train-{n:05d}.arrow" for _, numbers in spans[:2] for n in numbers}
    next(stream)
    assert spans[0][0] >= 8  # one step reads the first window only
    wait_for(lambda: expected <= server.requests.keys())
    time.sleep(0.1)  # for a fetch too many to show
    assert {name for name in server.requests if name.startswith("train")} == expected
    stream.close()


def test_a_failure_to_fetch_ahead_surfaces_at_the_step_that_needs_the_rows(
    make_stream, open_remote, server
):
    spans = windows()
    broken = int(spans[1][1][0])
    server.answers[f"train-{broken:05d}.arrow"] = 404
    seen = []
    with pytest.raises(DataError, match=rf"train-{broken:05d}\.arrow is missing"):
        for step, _ in make_stream(shards=open_remote(), prefetch_steps=1).iter_from(0, 9):
            seen.append(step)
    assert seen == list(range(spans[0][0] // 8))


def test_leaving_does_not_wait_for_a_server_that_is_away(make_stream, open_remote, server):
    shards, others = open_remote(deadline_s=300.0), set(threading.enumerate())
    stream = make_stream(shards=shards, prefetch_steps=2).iter_from(0, 50)
    next(stream)
    server.stop()
    stream.close()
    own = (thread for thread in set(threading.enumerate()) - others)
    started = [thread for thread in own if thread.name.startswith("fitb-")]
    wait_for(lambda: not any(thread.is_alive() for thread in started))
    server.start()
    assert len(shards.read(np.arange(24)).input_ids) == 24  # it may be read again


def test_a_cache_that_does_not_hold_two_windows_is_refused_with_both_remedies(
    make_stream, server, tmp_path
):
    settings = CacheSettings(str(tmp_path / "cache"), 3e-6)
    shards = ShardSet.open(server.url, "train", settings)
    needed = sum(sorted(shards.shard_bytes)[-4:])
    with pytest.raises(ConfigError) as refused:
        make_stream(shards=shards)
    message = str(refused.value)
    assert f"{needed / 1e9:.4g} GB; raise data.cache_gb above that" in message
    assert "lower data.window_shards to 1" in message or "prepare smaller shards" in message
