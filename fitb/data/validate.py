"""Proof that masks of given rows keep their promises, and what they cover: for the manifest.

Legend: B rows, L length, K slots per row, M used slots of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitb.config import MaskConfig
from fitb.data.masking import IGNORE_INDEX, Masked, Vocabulary, budgets, mask_rows, word_numbers
from fitb.errors import DataError

_ERRORS = 5  # standard errors that a share may be off: chance alone does that once in a million
_REMEDY = "prepare the shards again with the tokenizer's own special tokens and word starts"


def validate(
    input_ids: NDArray[np.int64],
    word_starts: NDArray[np.bool_],
    *,
    vocabulary: Vocabulary,
    configs: Sequence[MaskConfig],
    seed: int,
) -> list[dict[str, Any]]:
    """Mask sample rows under each setting and check what came out.

    Args:
        input_ids: (B, L) int64.
        word_starts: (B, L) bool, true on the first piece of each word.
        seed: of the masks.
    Returns: for each setting a JSON-able dict: rows, strategy and fraction; as measured,
        mask_share and random_share of slots, coverage (share of ordinary tokens that are slots),
        slots_mean and slots_std over rows. Shares of nothing are 0.
    Raises: DataError with every promise that is broken under every setting.
    """
    rows = np.arange(len(input_ids), dtype=np.int64)
    words = word_numbers(input_ids, word_starts, vocabulary)
    results, failures = [], []
    for config in configs:
        masked = mask_rows(
            input_ids,
            word_starts,
            rows,
            np.zeros_like(rows),
            seed=seed,
            vocabulary=vocabulary,
            config=config,
        )
        label = f"masks of strategy={config.strategy} fraction={config.fraction}"
        broken = [*_tokens(input_ids, masked, vocabulary), *_counts(masked, words, config)]
        broken += _shares(masked, vocabulary, config)
        failures += [f"{label}: {failure}" for failure in broken]
        results.append(_describe(masked, words, vocabulary, config))
    if failures:
        raise DataError(f"{'; '.join(failures)}; {_REMEDY}")
    return results


def _used(masked: Masked) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(M,) rows, places and labels of used slots."""
    used = masked.labels != IGNORE_INDEX
    return np.nonzero(used)[0], masked.slots[used], masked.labels[used]


def _tokens(input_ids: NDArray[np.int64], masked: Masked, vocabulary: Vocabulary) -> Iterator[str]:
    """Special tokens, labels, and what is outside the slots."""
    row, place, labels = _used(masked)
    special = vocabulary.is_special()
    shown = masked.input_ids[row, place]
    number = int(special[input_ids[row, place]].sum())
    if number:
        yield f"{number} of {len(row)} slots are special tokens, expected none"
    number = int((special[shown] & (shown != vocabulary.mask_id) & (shown != labels)).sum())
    if number:
        yield f"{number} of {len(row)} slots show a special token drawn at random, expected none"
    number = int((labels != input_ids[row, place]).sum())
    if number:
        yield f"{number} of {len(row)} labels are not the token of the row, expected none"
    restored = masked.input_ids.copy()
    restored[row, place] = input_ids[row, place]
    number = int((restored != input_ids).sum())
    if number:
        yield f"{number} tokens outside the slots have changed, expected none"


def _counts(masked: Masked, words: NDArray[np.int64], config: MaskConfig) -> Iterator[str]:
    """Budgets and whole words."""
    num_rows, length = words.shape
    row, place, _ = _used(masked)
    left = budgets(words, length, config) - np.bincount(row, minlength=num_rows)
    if config.strategy == "token":
        number = int((left != 0).sum())
        if number:
            yield f"{number} of {num_rows} rows miss their budget, expected none"
        return
    ordinary = words >= 0
    of_word = np.arange(num_rows)[:, None] * length + words
    sizes = np.bincount(of_word[ordinary], minlength=words.size).reshape(words.shape)
    inside = words[row, place] >= 0  # others are told of as special tokens
    which = of_word[row, place][inside]
    hit = np.bincount(which, minlength=words.size).reshape(words.shape)
    number = int(((hit > 0) & (hit < sizes)).sum())
    if number:
        yield f"{number} of {int((hit > 0).sum())} masked words are cut, expected none"
    number = int((left < 0).sum())
    if number:
        yield f"{number} of {num_rows} rows have more slots than their budget, expected none"
    shortest = np.where((sizes > 0) & (hit == 0), sizes, length + 1).min(axis=1, initial=length + 1)
    number = int((left >= shortest).sum())
    if number:
        yield (
            f"{number} of {num_rows} rows fall short of their budget by a word that would fit,"
            " expected none"
        )


def _shares(masked: Masked, vocabulary: Vocabulary, config: MaskConfig) -> Iterator[str]:
    """Shares of [MASK] and of random tokens; a token drawn at random may be the true one."""
    mask_share, random_share, num_slots = _measured(masked, vocabulary)
    other = 1 - 1 / len(vocabulary.ordinary_ids())
    for name, found, expected in (
        ("mask_share", mask_share, config.mask_share),
        ("random_share", random_share, config.random_share * other),
    ):
        error = (expected * (1 - expected) / max(1, num_slots)) ** 0.5
        if num_slots and abs(found - expected) > _ERRORS * error + 1e-12:
            yield (
                f"{name} {found:.4f} of {num_slots} slots, expected {expected:.4f} within"
                f" {_ERRORS * error:.4f}"
            )


def _measured(masked: Masked, vocabulary: Vocabulary) -> tuple[float, float, int]:
    """Share of slots that show [MASK], share that show another token, number of slots."""
    row, place, labels = _used(masked)
    shown = masked.input_ids[row, place]
    hidden = shown == vocabulary.mask_id
    random = ~hidden & (shown != labels)
    return float(hidden.sum()) / max(1, len(row)), float(random.sum()) / max(1, len(row)), len(row)


def _describe(
    masked: Masked, words: NDArray[np.int64], vocabulary: Vocabulary, config: MaskConfig
) -> dict[str, Any]:
    mask_share, random_share, num_slots = _measured(masked, vocabulary)
    per_row = (masked.labels != IGNORE_INDEX).sum(axis=1)
    return {
        "strategy": config.strategy,
        "fraction": config.fraction,
        "mask_share": round(mask_share, 6),
        "random_share": round(random_share, 6),
        "coverage": round(num_slots / max(1, int((words >= 0).sum())), 6),
        "slots_mean": round(float(per_row.sum()) / max(1, len(per_row)), 6),
        "slots_std": round(float(per_row.std()), 6) if len(per_row) else 0.0,
        "rows": len(per_row),
    }
