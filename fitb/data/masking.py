"""The one collator: masked batches as a pure function of (seed, epoch, row, position).

Legend: B rows, L length, K slots per row (fixed by L and the settings, so shapes are static).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fitb import rng
from fitb.config import MaskConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
_CHOICE, _SHOWN, _RANDOM, _LENGTH = 11, 12, 13, 14  # what a key is for
_NEVER = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer.

    Args:
        size: number of token ids.
        pad_id: of [PAD].
        mask_id: of [MASK].
        special_ids: ids that are never masked and never drawn as random replacements.
    """

    size: int
    pad_id: int
    mask_id: int
    special_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        return cls(
            size=len(tokenizer),
            pad_id=int(tokenizer.pad_token_id),
            mask_id=int(tokenizer.mask_token_id),
            special_ids=tuple(sorted(tokenizer.all_special_ids)),
        )

    def is_special(self) -> NDArray[np.bool_]:
        """(size,) bool."""
        table = np.zeros(self.size, dtype=bool)
        table[list(self.special_ids)] = True
        return table


@dataclass(frozen=True)
class Batch:
    """Masked rows.

    Args:
        input_ids: (B, L) int64, slots replaced.
        attention_mask: (B, L) int64, 1 on real tokens.
        slots: (B, K) int64, positions in the row; 0 where unused.
        labels: (B, K) int64, the true token; IGNORE_INDEX where the slot is unused.
        slot_words: (B, K) int64, number of the slot's word in its row; -1 where unused.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    slots: torch.Tensor
    labels: torch.Tensor
    slot_words: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def part(self, begin: int, end: int) -> Batch:
        return Batch(*(getattr(self, f.name)[begin:end] for f in fields(self)))

    def coverage(self) -> torch.Tensor:
        """(4,) float64: rows, real tokens, used slots, sum over rows of used slots squared."""
        used = (self.labels != IGNORE_INDEX).sum(1).double()
        rows = torch.tensor(len(used), dtype=torch.float64)
        return torch.stack(
            [rows, self.attention_mask.sum().double(), used.sum(), used.square().sum()]
        )


def num_slots(length: int, config: MaskConfig) -> int:
    """K: the budget of a row with no other special tokens than [CLS] and one [SEP]."""
    return max(1, round(config.fraction * (length - 2)))


def word_numbers(
    input_ids: NDArray[np.int64], word_starts: NDArray[np.bool_], vocabulary: Vocabulary
) -> NDArray[np.int64]:
    """(B, L) int64: the number of each token's word in its row.

    It is -1 for special tokens, and for the tail of a word that was cut before the row began: such
    tokens are never masked.
    """
    words = np.cumsum(word_starts, axis=1) - 1
    return np.where(vocabulary.is_special()[input_ids], -1, words)


def mask_rows(
    input_ids: NDArray[np.int64],
    word_starts: NDArray[np.bool_],
    rows: NDArray[np.int64],
    epochs: NDArray[np.int64],
    *,
    seed: int,
    vocabulary: Vocabulary,
    config: MaskConfig,
) -> Batch:
    """Mask rows: choose slots, then show [MASK], a random token or the token itself in each.

    The budget of a row is round(fraction x ordinary tokens), at least 1 where there is one.
    `token` meets it exactly; `whole_word` and `span` never cut a word and so may fall short by
    less than the shortest word left. 80/10/10 after Devlin et al. 2019, section 3.1, per token.

    Args:
        input_ids: (B, L) int64.
        word_starts: (B, L) bool, true on the first piece of each word.
        rows: (B,) int64, row numbers: part of the key.
        epochs: (B,) int64, part of the key; evaluation uses its own constant.
        seed: of the run.
    """
    special = vocabulary.is_special()
    words = word_numbers(input_ids, word_starts, vocabulary)
    ordinary = words >= 0
    budget = np.round(config.fraction * ordinary.sum(1)).astype(np.int64)
    budget = np.maximum(budget, ordinary.any(1).astype(np.int64))
    budget = np.minimum(budget, num_slots(input_ids.shape[1], config))
    where = (epochs[:, None], rows[:, None], np.arange(input_ids.shape[1])[None])
    key = np.where(ordinary, rng.keyed(seed, _CHOICE, *where), _NEVER)
    if config.strategy == "token":
        chosen = _smallest(key, budget) & ordinary
    else:
        sizes = _word_sizes(words)
        order = _words_in_keyed_order(key, words, sizes)
        if config.strategy == "whole_word":
            taken = _first_fit(order, sizes, budget)
        else:
            lengths = _span_lengths(seed, epochs, rows, order.shape, config)
            taken = _spans(order, sizes, budget, lengths)
        chosen = np.take_along_axis(taken, np.maximum(words, 0), axis=1) & ordinary
    shown = rng.uniform(seed, _SHOWN, *where)
    pool = np.flatnonzero(~special)
    drawn = pool[(rng.uniform(seed, _RANDOM, *where) * len(pool)).astype(np.int64)]
    masked = np.where(chosen & (shown < config.mask_share), vocabulary.mask_id, input_ids)
    randomised = (shown >= config.mask_share) & (shown < config.mask_share + config.random_share)
    masked = np.where(chosen & randomised, drawn, masked)
    return _batch(input_ids, masked, chosen, words, vocabulary, num_slots(key.shape[1], config))


def _smallest(key: NDArray[np.uint64], budget: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(B, L) bool, true at the `budget` smallest keys of each row."""
    rank = np.argsort(np.argsort(key, axis=1, kind="stable"), axis=1, kind="stable")
    return rank < budget[:, None]


def _word_sizes(words: NDArray[np.int64]) -> NDArray[np.int64]:
    """(B, W) tokens in each word, 0 past a row's last word; W is the most words of any row."""
    num_rows, width = len(words), int(words.max(initial=0)) + 1
    flat = (np.arange(num_rows)[:, None] * width + words)[words >= 0]
    return np.bincount(flat, minlength=num_rows * width).reshape(num_rows, width)


def _words_in_keyed_order(
    key: NDArray[np.uint64], words: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(B, W) word numbers by the key of their first token; words that do not exist come last."""
    first = np.cumsum(sizes, axis=1) - sizes  # of each word among the row's ordinary tokens
    packed = np.take_along_axis(key, np.argsort(words < 0, axis=1, kind="stable"), axis=1)
    word_key = np.take_along_axis(packed, np.minimum(first, key.shape[1] - 1), axis=1)
    return np.argsort(np.where(sizes > 0, word_key, _NEVER), axis=1, kind="stable")


def _first_fit(
    order: NDArray[np.int64], sizes: NDArray[np.int64], budget: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Take words in order, passing over those that do not fit any more: (B, W) bool by word.

    Done in rounds, each taking the longest run that fits: a word passed over never fits later.
    """
    ordered = np.take_along_axis(sizes, order, axis=1)
    taken = np.zeros(order.shape, dtype=bool)  # by place in the order
    left = budget.copy()
    open_ = ordered > 0
    while True:
        open_ &= ordered <= left[:, None]
        if not open_.any():
            break
        run = np.cumsum(np.where(open_, ordered, 0), axis=1) <= left[:, None]
        new = open_ & run
        taken |= new
        left = left - (ordered * new).sum(1)
        open_ &= ~new
    by_word = np.zeros_like(taken)
    np.put_along_axis(by_word, order, taken, axis=1)
    return by_word


def _span_lengths(
    seed: int,
    epochs: NDArray[np.int64],
    rows: NDArray[np.int64],
    shape: tuple[int, ...],
    config: MaskConfig,
) -> NDArray[np.int64]:
    """(B, W) span lengths in words: geometric, clipped (Joshi et al. 2020, section 3.1)."""
    place = np.arange(shape[1])[None]
    u = rng.uniform(seed, _LENGTH, epochs[:, None], rows[:, None], place)
    if config.span_p == 1:
        return np.ones(shape, dtype=np.int64)
    drawn = 1 + np.floor(np.log1p(-u) / np.log1p(-config.span_p))
    lengths: NDArray[np.int64] = np.minimum(drawn, config.span_max_words).astype(np.int64)
    return lengths


def _spans(
    order: NDArray[np.int64],
    sizes: NDArray[np.int64],
    budget: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Take spans of words, the i-th beginning at the i-th word in order: (B, W) bool by word.

    A span stops before the first word that does not fit into what is left of the budget; a word
    that an earlier span took costs nothing. In a packed row a span may run on into the next text.
    """
    num_words = sizes.shape[1]
    taken = np.zeros(sizes.shape, dtype=bool)
    left = budget.copy()
    all_rows = np.arange(len(sizes))
    for i in range(num_words):
        going = left > 0
        if not going.any():
            break
        for step in range(int(lengths[going, i].max())):
            word = order[:, i] + step
            inside = np.minimum(word, num_words - 1)
            size = sizes[all_rows, inside]
            going = going & (step < lengths[:, i]) & (word < num_words) & (size > 0)
            new = going & ~taken[all_rows, inside]
            going = going & ~(new & (size > left))
            new = new & going
            taken[all_rows[new], inside[new]] = True
            left = left - np.where(new, size, 0)
            if not going.any():
                break
    return taken


def _batch(
    input_ids: NDArray[np.int64],
    masked: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    words: NDArray[np.int64],
    vocabulary: Vocabulary,
    slots_per_row: int,
) -> Batch:
    places = np.argsort(~chosen, axis=1, kind="stable")[:, :slots_per_row]
    used = np.take_along_axis(chosen, places, axis=1)
    labels = np.take_along_axis(input_ids, places, axis=1)
    slot_words = np.take_along_axis(words, places, axis=1)
    return Batch(
        input_ids=torch.from_numpy(masked),
        attention_mask=torch.from_numpy((input_ids != vocabulary.pad_id).astype(np.int64)),
        slots=torch.from_numpy(np.where(used, places, 0)),
        labels=torch.from_numpy(np.where(used, labels, IGNORE_INDEX)),
        slot_words=torch.from_numpy(np.where(used, slot_words, -1)),
    )
