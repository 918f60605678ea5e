"""Masking: a pure function of (seed, epoch, row, position) in numpy, used by all commands.

A slot is a masked position. Legend: B rows, L length, K slots per row (fixed by L and the settings,
so that shapes are static), W largest number of words in a row, T ordinary tokens and M used slots
of all rows, concatenated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fitb.base import rng
from fitb.config import AlgorithmsConfig, MaskConfig
from fitb.data.whole_words import equal_shares
from fitb.shards.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
_CHOICE, _SHOWN, _RANDOM, _LENGTH = 11, 12, 13, 14  # purposes of random keys
_NEVER = np.uint64(2**64 - 1)
_BLOCK_TOKENS = 2**14  # masked at a time: arrays of 128 kB fit into a core's cache
_SPAN_LENGTHS = 16  # drawn at a time for the rows that need more; most rows need no second draw


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer that masking needs.

    Args:
        size: number of token ids.
        pad_id: id of [PAD].
        mask_id: id of [MASK].
        special_ids: ids that are never masked and never drawn as random replacements.
        sep_id: id of [SEP], which ends a document.
    """

    size: int
    pad_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    sep_id: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        return cls(
            size=len(tokenizer),
            pad_id=int(tokenizer.pad_token_id),
            mask_id=int(tokenizer.mask_token_id),
            special_ids=tuple(sorted(tokenizer.all_special_ids)),
            sep_id=int(tokenizer.sep_token_id),
        )

    @classmethod
    def of_folder(cls, folder: Path) -> Vocabulary:
        """Return the same for a tokenizer folder, without importing transformers."""
        tokenizer, special = open_tokenizer(folder)
        added = tokenizer.get_added_tokens_decoder().items()
        marked = {number for number, token in added if token.special}
        ids = marked | set(asdict(special).values())
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        return cls(size, special.pad, special.mask, tuple(sorted(ids)), special.sep)

    @lru_cache(maxsize=8)  # noqa: B019, few small values; equal vocabularies share one
    def is_special(self) -> NDArray[np.bool_]:
        """(size,) bool, read-only: whether an id is special."""
        table = np.zeros(self.size, dtype=bool)
        table[list(self.special_ids)] = True
        table.setflags(write=False)
        return table

    @lru_cache(maxsize=8)  # noqa: B019
    def ordinary_ids(self) -> NDArray[np.int64]:
        """(size - number of special ids,) int64, read-only: the ordinary ids, ascending."""
        ids = np.flatnonzero(~self.is_special())
        ids.setflags(write=False)
        return ids


@dataclass(frozen=True)
class Masked:
    """Masked rows.

    Args:
        input_ids: (B, L) int64, token ids with masked positions replaced.
        attention_mask: (B, L) int64, 1 on real tokens, 0 on padding.
        slots: (B, K) int64, masked positions in the row, ascending; 0 if unused.
        labels: (B, K) int64, true token ids; IGNORE_INDEX if unused.
        slot_words: (B, K) int64, number of each masked position's word in its row; -1 if unused.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    slots: NDArray[np.int64]
    labels: NDArray[np.int64]
    slot_words: NDArray[np.int64]


def num_slots(length: int, config: MaskConfig) -> int:
    """K: number of masked positions in a row whose only special tokens are [CLS] and one [SEP]."""
    return max(1, round(config.fraction * (length - 2)))


def word_numbers(
    input_ids: NDArray[np.int64], word_starts: NDArray[np.bool_], vocabulary: Vocabulary
) -> NDArray[np.int64]:
    """(B, L) int64: number of each token's word in its row.

    It is -1 for tokens that are never masked: special ones, and the tail of a word that began in
    the row before.
    """
    words = np.cumsum(word_starts, axis=1, dtype=np.int64)
    words -= 1
    words[np.take(vocabulary.is_special(), input_ids)] = -1
    return words


def mask_rows(
    input_ids: NDArray[np.int64],
    word_starts: NDArray[np.bool_],
    rows: NDArray[np.int64],
    epochs: NDArray[np.int64],
    *,
    seed: int,
    vocabulary: Vocabulary,
    config: MaskConfig,
    version: int = AlgorithmsConfig.masks,
) -> Masked:
    """Choose masked positions, and replace each by [MASK], a random token or the token itself.

    The budget of a row is round(fraction x ordinary tokens), at least 1 if it has one, at most
    num_slots. The strategy `token` reaches it exactly; `whole_word` and `span` never cut a word, so
    they may miss it by less than the shortest word left. 80/10/10 per token as in Devlin et al.
    2019, section 3.1.

    Args:
        input_ids: (B, L) int64, token ids.
        word_starts: (B, L) bool, true on the first subword of each word.
        rows: (B,) int64, row numbers, part of the random key.
        epochs: (B,) int64, epoch numbers, part of the random key; evaluation uses a constant.
        seed: seed of the run.
        vocabulary: vocabulary of the tokenizer.
        config: masking settings.
        version: version of the algorithm, `algorithms.masks`.
    """
    num_rows, length = input_ids.shape
    shape = (num_rows, num_slots(length, config))
    masked = Masked(
        input_ids=input_ids.astype(np.int64),
        attention_mask=(input_ids != vocabulary.pad_id).astype(np.int64),
        slots=np.zeros(shape, dtype=np.int64),
        labels=np.full(shape, IGNORE_INDEX, dtype=np.int64),
        slot_words=np.full(shape, -1, dtype=np.int64),
    )
    step = max(1, _BLOCK_TOKENS // length)
    for begin in range(0, num_rows, step):
        block = slice(begin, begin + step)
        words = word_numbers(input_ids[block], word_starts[block], vocabulary)
        where = (epochs[block], rows[block])
        row, place = _choose(words, where, seed, config, version)
        number = np.arange(len(row)) - np.searchsorted(row, row)  # index of the slot in its row
        row_in_batch = row + begin
        labels = input_ids[row_in_batch, place]
        masked.slots[row_in_batch, number] = place
        masked.labels[row_in_batch, number] = labels
        masked.slot_words[row_in_batch, number] = words[row, place]
        key = (where[0][row], where[1][row], place)
        masked.input_ids[row_in_batch, place] = _show(labels, key, seed, vocabulary, config)
    return masked


def _show(
    labels: NDArray[np.int64],
    key: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    seed: int,
    vocabulary: Vocabulary,
    config: MaskConfig,
) -> NDArray[np.int64]:
    """(M,) int64: [MASK], a random ordinary token, or the token itself for each slot."""
    drawn = rng.uniform(seed, _SHOWN, *key)
    random = np.flatnonzero(
        (drawn >= config.mask_share) & (drawn < config.mask_share + config.random_share)
    )
    shown = np.where(drawn < config.mask_share, vocabulary.mask_id, labels)
    pool = vocabulary.ordinary_ids()
    which = rng.uniform(seed, _RANDOM, *(part[random] for part in key)) * len(pool)
    shown[random] = pool[which.astype(np.int64)]
    return shown


def budgets(words: NDArray[np.int64], config: MaskConfig) -> NDArray[np.int64]:
    """(B,) int64: number of tokens to mask in each row, from its (B, L) word numbers."""
    ordinary = np.count_nonzero(words >= 0, axis=1)
    wanted = np.round(config.fraction * ordinary).astype(np.int64)
    most = num_slots(words.shape[1], config)
    return np.asarray(np.minimum(np.maximum(wanted, np.minimum(ordinary, 1)), most))


def _choose(
    words: NDArray[np.int64],
    where: tuple[NDArray[np.int64], NDArray[np.int64]],
    seed: int,
    config: MaskConfig,
    version: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(M,) rows and (M,) positions of all slots, in row-major order."""
    length, budget = words.shape[1], budgets(words, config)
    row_key = tuple(part[:, None] for part in where)
    if config.strategy == "token":
        key = rng.keyed(seed, _CHOICE, *row_key, np.arange(length)[None])
        key[words < 0] = _NEVER
        row, place = np.nonzero(_smallest(key, budget) & (words >= 0))
        return row, place
    tokens = np.flatnonzero(words >= 0)  # flat positions
    width = int(words.max(initial=0)) + 1
    word = (words + np.arange(len(words))[:, None] * width).ravel()[tokens]  # flat in (B, W)
    sizes, first = _word_table(tokens, word, (len(words), width), length)
    key = rng.keyed(seed, _CHOICE, *row_key, first)
    key[sizes == 0] = _NEVER  # others of a row are distinct: hashing a position is bijective
    if config.strategy == "whole_word" and version > 2:
        taken = equal_shares(key, sizes, budget)
    elif config.strategy == "whole_word":
        taken = _first_fit(np.argsort(key, axis=1), sizes, budget)
    else:
        lengths_of = _span_lengths(seed, where, config, version)
        order = np.argsort(key, axis=1)
        taken = _spans(order, sizes, budget, lengths_of, config.span_max_words)
    row, place = np.divmod(tokens[taken.ravel()[word]], length)
    return row, place


def _smallest(key: NDArray[np.uint64], budget: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(B, L) bool: true at the `budget` smallest keys of each row; the keys are distinct."""
    most = int(budget.max(initial=0))
    if most == 0:
        return np.zeros(key.shape, dtype=bool)
    small = np.sort(np.partition(key, most - 1, axis=1)[:, :most], axis=1)
    last = np.take_along_axis(small, np.maximum(budget, 1)[:, None] - 1, axis=1)
    return (key <= last) & (budget > 0)[:, None]


def _word_table(
    tokens: NDArray[np.int64], word: NDArray[np.int64], shape: tuple[int, int], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(B, W) number of tokens in each word (0: no word) and (B, W) position of its first token."""
    sizes, first = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    new = np.ones(len(word), dtype=bool)
    np.not_equal(word[1:], word[:-1], out=new[1:])
    begins = np.flatnonzero(new)
    which = word[begins]
    sizes.ravel()[which] = np.diff(begins, append=len(word))
    first.ravel()[which] = np.tile(np.arange(length), len(first))[tokens[begins]]
    return sizes, first


def _first_fit(
    order: NDArray[np.int64], sizes: NDArray[np.int64], budget: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Choose words in order, skipping those that do not fit the rest of the budget: (B, W) bool."""
    # Each round takes the longest prefix that fits: a skipped word never fits later.
    by_word = np.zeros(order.shape, dtype=bool)
    todo = np.flatnonzero(budget > 0)
    left = budget[todo]
    end = int(left.max(initial=0))  # of the first round, which often suffices
    while len(todo):
        words = order[todo, :end]
        size = np.where(by_word[todo[:, None], words], 0, sizes[todo[:, None], words])
        size[size > left[:, None]] = 0
        ends = np.cumsum(size, axis=1)
        fits = (ends <= left[:, None]) & (size > 0)
        row, place = np.nonzero(fits)
        by_word[todo[row], words[row, place]] = True
        left = left - np.where(fits, ends, 0).max(axis=1, initial=0)
        more = (left > 0) & ((ends[:, -1] > 0) | (end < order.shape[1]))
        todo, left, end = todo[more], left[more], order.shape[1]
    return by_word


def _span_lengths(
    seed: int, where: tuple[NDArray[np.int64], NDArray[np.int64]], config: MaskConfig, version: int
) -> Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]:
    """Return a function from rows (n,) and span numbers (s,) to span lengths in words, (n, s)."""
    # Geometric, truncated at the longest span as in the code of Joshi et al. 2020, whose mean is
    # 3.8 words (section 3.1). Version 1 clipped longer spans instead.
    p, longest = config.span_p, config.span_max_words
    within = 1.0 if version == 1 else 1 - (1 - p) ** longest  # probability of a length up to it

    def lengths_of(rows: NDArray[np.int64], spans: NDArray[np.int64]) -> NDArray[np.int64]:
        if p == 1:
            return np.ones((len(rows), len(spans)), dtype=np.int64)
        u = rng.uniform(seed, _LENGTH, *(part[rows, None] for part in where), spans)
        drawn = 1 + np.floor(np.log1p(-u * within) / np.log1p(-p))
        lengths: NDArray[np.int64] = np.minimum(drawn, longest).astype(np.int64)
        return lengths

    return lengths_of


def _spans(
    order: NDArray[np.int64],
    sizes: NDArray[np.int64],
    budget: NDArray[np.int64],
    lengths_of: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]],
    longest: int,
) -> NDArray[np.bool_]:
    """Choose spans of words, of which the i-th begins at the i-th word in order: (B, W) bool.

    A span stops before the first word that exceeds the rest of the budget; words of earlier spans
    cost nothing. In a packed row a span may continue into the next document.
    """
    num_words = sizes.shape[1]
    longest = min(longest, num_words)
    after = ((0, 0), (0, longest))  # padding of size 0, which ends a span
    sizes, taken = np.pad(sizes, after), np.zeros((len(sizes), num_words + longest), dtype=bool)
    todo = np.flatnonzero(budget > 0)
    left, steps = budget[todo], np.arange(longest)
    for i in range(num_words):
        if i % _SPAN_LENGTHS == 0:
            lengths = lengths_of(todo, np.arange(i, i + _SPAN_LENGTHS))
        row, words = todo[:, None], order[todo, i][:, None] + steps
        size = sizes[row, words]
        ends = np.cumsum(np.where(taken[row, words], 0, size), axis=1)
        inside = steps < lengths[:, i % _SPAN_LENGTHS, None]
        fits = np.logical_and.accumulate(inside & (size > 0) & (ends <= left[:, None]), axis=1)
        which, step = np.nonzero(fits)
        taken[todo[which], words[which, step]] = True
        left = left - np.where(fits, ends, 0).max(axis=1)
        more = (left > 0) & (size[:, 0] > 0)  # padding comes last
        todo, left, lengths = todo[more], left[more], lengths[more]
        if not len(todo):
            break
    return taken[:, :num_words]
