"""Rows masked as a test wants them, and where their slots and words are."""

import numpy as np

from fitb.config import MaskConfig
from fitb.data.masking import IGNORE_INDEX, mask_rows

STRATEGIES = ("token", "whole_word", "span")
SEED = 5


def settings(strategy, **changes):
    return MaskConfig(strategy=strategy, **changes)


def masked(rows, vocabulary, config, seed=SEED, epoch=0, numbers=None):
    size = len(rows.input_ids)
    numbers = np.arange(size) * 7 + 3 if numbers is None else np.asarray(numbers)
    return mask_rows(
        rows.input_ids,
        rows.word_starts,
        numbers.astype(np.int64),
        np.full(size, epoch, dtype=np.int64),
        seed=seed,
        vocabulary=vocabulary,
        config=config,
    )


def chosen_of(batch):
    """For each row, the places of its slots."""
    used = batch.labels != IGNORE_INDEX
    return [row[mask].tolist() for row, mask in zip(batch.slots, used, strict=True)]


def words_of(ids, starts, vocabulary):
    """Lists of places, one list for each word that begins in the row."""
    words = []
    for place, token in enumerate(ids.tolist()):
        if token in vocabulary.special_ids:
            continue
        if starts[place]:
            words.append([])
        words[-1].append(place)
    return words
