"""Count correct predictions in rows of a split, with masks fixed by a seed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fitb.config import AlgorithmsConfig, MaskConfig
from fitb.data.batch import Batch
from fitb.data.cached_rows import CachedRows
from fitb.data.masking import IGNORE_INDEX, Vocabulary, mask_rows, word_numbers
from fitb.evaluation.row_counts import PLAIN, RowCounts, Slots, count_rows
from fitb.evaluation.score import Bert, Predictor, evaluating, score
from fitb.evaluation.words import Categoriser
from fitb.shards.documents import documents_at
from fitb.shards.shard_set import ShardSet

if TYPE_CHECKING:
    from transformers import BertForMaskedLM

EVALUATION_EPOCH = 2**31 - 1  # key of evaluation masks, which no training epoch has


def choose_rows(num_rows: int, wanted: int) -> NDArray[np.int64]:
    """Return `wanted` row numbers, int64, spread evenly over 0 .. num_rows - 1; 0 means all."""
    count = min(wanted, num_rows) if wanted else num_rows
    return np.arange(count, dtype=np.int64) * num_rows // max(1, count)


def count(
    model: BertForMaskedLM | Predictor,
    shards: ShardSet | CachedRows,
    rows: NDArray[np.int64],
    *,
    vocabulary: Vocabulary,
    mask: MaskConfig,
    seed: int = 0,
    batch_rows: int = 64,
    mask_version: int = AlgorithmsConfig.masks,
) -> RowCounts:
    """Count a model's correct predictions in rows of a split, with masks fixed by `seed`.

    The masks of a row depend on its number alone, so ranks can count disjoint rows and add the
    counts. The model runs on its device in its precision, in eval mode; logits are fp32. Training
    flags of its modules are restored.

    Args:
        model: BERT with its MLM head, or a predictor.
        shards: the split, or its rows in memory.
        rows: (N,) int64, row numbers in the split; may be empty.
        vocabulary: vocabulary of the shards' tokenizer.
        mask: masking of the rows.
        seed: seed of the masks.
        batch_rows: rows per forward pass.
        mask_version: version of the masks, `algorithms.masks`.
    Returns: the columns of PLAIN, over all words.
    """
    parts = [RowCounts.nothing(len(PLAIN))]
    if isinstance(model, torch.nn.Module):
        predictor: Predictor = Bert(model)
        mode: AbstractContextManager[None] = evaluating(model)
    else:
        predictor, mode = model, nullcontext()
    with mode, torch.no_grad():
        for begin in range(0, len(rows), batch_rows):
            chosen = rows[begin : begin + batch_rows]
            batch, slots = masked_batch(
                shards, chosen, vocabulary, mask, seed, version=mask_version
            )
            scores = score({"": predictor}, batch, judged=False)[""]
            parts.append(count_rows(slots, scores))
    return RowCounts.joined(parts)


def masked_batch(
    shards: ShardSet | CachedRows,
    rows: NDArray[np.int64],
    vocabulary: Vocabulary,
    mask: MaskConfig,
    seed: int,
    categoriser: Categoriser | None = None,
    version: int = AlgorithmsConfig.masks,
) -> tuple[Batch, Slots]:
    """Read and mask rows; words are grouped by the categoriser, without one in a single group."""
    read = shards.read(rows)
    masked = mask_rows(
        read.input_ids,
        read.word_starts,
        rows,
        np.full(len(rows), EVALUATION_EPOCH),
        seed=seed,
        vocabulary=vocabulary,
        config=mask,
        version=version,
    )
    words = word_numbers(read.input_ids, read.word_starts, vocabulary)
    used = masked.labels != IGNORE_INDEX
    row = np.broadcast_to(np.arange(len(rows))[:, None], used.shape)[used]
    parts, part = parts_of(shards, rows, read.input_ids, (row, masked.slots[used]), vocabulary)
    slot_words = masked.slot_words[used]
    if categoriser is None:
        groups = np.ones((*words.shape, 1), dtype=bool)
    else:
        touched = np.zeros(words.shape, dtype=bool)
        touched[row, slot_words] = True
        groups = categoriser.groups(rows, read.input_ids, words, touched)
    return Batch.of(masked), Slots(
        *parts, part, row, masked.labels[used], words, slot_words, groups
    )


def parts_of(
    shards: ShardSet | CachedRows,
    rows: NDArray[np.int64],
    input_ids: NDArray[np.int64],
    slots: tuple[NDArray[np.int64], NDArray[np.int64]],
    vocabulary: Vocabulary,
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]:
    """Return row and document of every part, and the part of each masked position (row, place)."""
    if isinstance(shards, CachedRows):  # for totals only: each row is one part
        return (rows, rows), slots[0]
    first = shards.document_numbers(rows)
    at = documents_at(input_ids, first, sep_id=vocabulary.sep_id, pad_id=vocabulary.pad_id)
    # The first part of each row, and all parts with a masked position.
    place = np.concatenate([np.arange(len(rows)), slots[0]])
    nth = np.concatenate([np.zeros(len(rows), dtype=np.int64), at[slots] - first[slots[0]]])
    of_part, part = np.unique(place * (input_ids.shape[1] + 1) + nth, return_inverse=True)
    row, nth = np.divmod(of_part, input_ids.shape[1] + 1)
    return (rows[row], first[row] + nth), part[len(rows) :]
