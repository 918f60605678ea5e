"""Baselines of an evaluation: token frequencies, random weights, drift of embeddings.

Legend: V vocabulary, D hidden.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertForMaskedLM

from fitb.data.masking import Vocabulary
from fitb.evaluation.count import choose_rows
from fitb.evaluation.data_parallel import Ranks
from fitb.model.load import seeded
from fitb.shards.shard_set import ShardSet

_BLOCK_ROWS = 4096


def count_tokens(
    shards: ShardSet, vocabulary: Vocabulary, wanted: int, ranks: Ranks
) -> NDArray[np.int64]:
    """Count the ordinary tokens in rows of a split, in blocks of 4,096 rows.

    Args:
        shards: the split.
        vocabulary: vocabulary of its tokenizer.
        wanted: number of rows, spread evenly over the split; 0 means all.
        ranks: processes that share the work.
    Returns: (V,) int64, counts by token id, 0 for special tokens; the same on every rank.
    """
    rows = choose_rows(shards.num_rows, wanted)
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for block in ranks.share(-(-len(rows) // _BLOCK_ROWS)):
        chosen = rows[block * _BLOCK_ROWS : (block + 1) * _BLOCK_ROWS]
        ids = shards.read(chosen).input_ids
        counts += np.bincount(ids.ravel(), minlength=vocabulary.size)
    counts[list(vocabulary.special_ids)] = 0
    parts = ranks.gathered({ranks.world.rank: counts})
    total: NDArray[np.int64] = ranks.given(np.sum(list(parts.values()), axis=0))
    return total


def untrained(model: BertForMaskedLM, seed: int) -> BertForMaskedLM:
    """Return a model of the same geometry and device with random weights, in eval mode.

    Args:
        model: model whose configuration is used.
        seed: seed of the weights.
    """
    with seeded(seed):
        fresh = BertForMaskedLM(BertConfig.from_dict(model.config.to_dict()))
    fresh.train(False)
    torch.nn.Module.to(fresh, model.device)
    return fresh


def drift(before: BertForMaskedLM, after: BertForMaskedLM, num_added: int) -> dict[str, Any] | None:
    """Measure how far the input embeddings moved; None if their shapes differ.

    Args:
        before: model before training.
        after: model after training.
        num_added: tokens that were added at the end of the vocabulary; before training such a row
            is the mean of the rows of its subwords.
    Returns: for `shared` and, if there are any, `added` tokens: num_tokens, mean and largest
        Euclidean distance of a row, mean and smallest cosine.
    """
    first, second = (
        model.bert.embeddings.word_embeddings.weight.detach().double().cpu()
        for model in (before, after)
    )
    if first.shape != second.shape:
        return None
    num_shared = len(first) - num_added
    found = {"shared": _moved(first[:num_shared], second[:num_shared])}
    if num_added:
        found["added"] = _moved(first[num_shared:], second[num_shared:])
    return found


def _moved(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    distance = (after - before).norm(dim=1)
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=1)
    cosine[distance == 0] = 1  # the row of [PAD] is zero in many models
    return {
        "num_tokens": len(before),
        "l2_mean": float(distance.mean()),
        "l2_max": float(distance.max()),
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
    }
