"""Measured statistics of masks: share of masked positions, and of what replaces the tokens.

Legend: B rows, L length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitb.config import MaskConfig
from fitb.data.masking import IGNORE_INDEX, Vocabulary, mask_rows, word_numbers


def mask_coverage(
    input_ids: NDArray[np.int64],
    word_starts: NDArray[np.bool_],
    *,
    vocabulary: Vocabulary,
    config: MaskConfig,
    seed: int,
) -> dict[str, Any]:
    """Mask sample rows and count their masked positions.

    Args:
        input_ids: (B, L) int64, token ids.
        word_starts: (B, L) bool, true on the first subword of each word.
        vocabulary: vocabulary of the tokenizer.
        config: masking settings.
        seed: seed of the masks.
    Returns: JSON-able: rows, strategy and fraction; measured shares mask_share and random_share of
        masked positions, coverage (share of ordinary tokens that are masked), mean and standard
        deviation per row slots_mean and slots_std. A share of nothing is 0.
    """
    rows = np.arange(len(input_ids), dtype=np.int64)
    where = rows, np.zeros_like(rows)
    masked = mask_rows(
        input_ids, word_starts, *where, seed=seed, vocabulary=vocabulary, config=config
    )
    used = masked.labels != IGNORE_INDEX
    shown = masked.input_ids[np.nonzero(used)[0], masked.slots[used]]
    is_mask = shown == vocabulary.mask_id
    is_random = ~is_mask & (shown != masked.labels[used])
    ordinary = word_numbers(input_ids, word_starts, vocabulary) >= 0
    per_row = used.sum(axis=1) if len(used) else np.zeros(1)
    return {
        "strategy": config.strategy,
        "fraction": config.fraction,
        "mask_share": round(int(is_mask.sum()) / max(1, len(shown)), 6),
        "random_share": round(int(is_random.sum()) / max(1, len(shown)), 6),
        "coverage": round(len(shown) / max(1, int(ordinary.sum())), 6),
        "slots_mean": round(float(per_row.mean()), 6),
        "slots_std": round(float(per_row.std()), 6),
        "rows": len(used),
    }
