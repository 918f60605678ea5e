"""Cached rows are those of the shards, and need no files."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from fitb.base.world import World
from fitb.data.cached_rows import CachedRows
from fitb.shards.shard_set import ShardSet
from fitb.training.setup import Validation


def test_cached_rows_are_those_of_the_shards_after_the_files_are_gone(shard_set, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(shard_set, folder)
    shards = ShardSet.open(folder, "train")
    rows = np.array([5, 3, 5, shards.num_rows - 1, 0])
    expected = shards.read(rows)
    held = CachedRows.of(shards, rows)
    shutil.rmtree(folder)
    found = held.read(rows)
    assert np.array_equal(found.input_ids, expected.input_ids)
    assert found.input_ids.dtype == expected.input_ids.dtype
    assert np.array_equal(found.word_starts, expected.word_starts)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("wanted", [0, 1, 5, 20])
def test_the_shares_of_all_ranks_are_the_rows_each_once(shard_set, size, wanted):
    shards = ShardSet.open(shard_set, "validation")
    parts = [Validation.of(shards, wanted, World(rank, size, 0)) for rank in range(size)]
    assert len({len(part.rows) for part in parts}) == 1
    counted = np.concatenate([part.rows[: part.num_own] for part in parts])
    assert len(counted) == len(set(counted)) == (wanted or shards.num_rows)
