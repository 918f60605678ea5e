"""A small vocabulary, made-up rows and a shard set that lives in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fitb.base.errors import DataError
from fitb.data.masking import Vocabulary

PAD, UNK, CLS, SEP, MASK = 0, 1, 2, 3, 4
SIZE = 60


@dataclass
class Rows:
    """Stand-in for what a shard set reads."""

    input_ids: np.ndarray
    word_starts: np.ndarray


class MemoryShards:
    """Stand-in for a shard set: rows in memory, without a cache, and what was asked for."""

    cache = None
    broken_row = -1

    def __init__(self, rows, shard_rows):
        self.rows, self.shard_rows = rows, shard_rows
        self.num_rows = sum(shard_rows)
        self.asked: list[list[int]] = []

    def read(self, rows):
        self.asked.append(rows.tolist())
        if self.broken_row in rows:
            raise DataError("the shard is torn")
        return Rows(self.rows.input_ids[rows], self.rows.word_starts[rows])


def random_rows(num_rows, length, seed=0, longest_word=4):
    """Rows of [CLS] documents [SEP] [PAD], with words of several pieces and unknown words.

    Every third row begins inside a word that the row before it cut.
    """
    draw = np.random.default_rng(seed)
    ids = np.full((num_rows, length), PAD, dtype=np.int64)
    starts = np.zeros((num_rows, length), dtype=bool)
    for row in range(num_rows):
        end = length if draw.random() < 0.7 else int(draw.integers(2, length + 1))
        ids[row, 0], ids[row, end - 1] = CLS, SEP
        place = 1
        while place < end - 1:
            tail, kind = place == 1 and row % 3 == 0, draw.random()
            if kind < 0.1 and not tail:
                ids[row, place] = SEP if kind < 0.05 else UNK
                place += 1
                continue
            stop = min(place + int(draw.integers(1, longest_word + 1)), end - 1)
            ids[row, place:stop] = draw.integers(5, SIZE, stop - place)
            starts[row, place] = not tail
            place = stop
    return Rows(ids, starts)


@pytest.fixture
def vocabulary():
    return Vocabulary(SIZE, PAD, MASK, special_ids=(PAD, UNK, CLS, SEP, MASK), sep_id=SEP)


@pytest.fixture
def make_rows():
    return random_rows


@pytest.fixture
def make_shards():
    def make(shard_rows=(5, 1, 9, 3, 6), length=16, **settings):
        return MemoryShards(random_rows(sum(shard_rows), length, **settings), list(shard_rows))

    return make
