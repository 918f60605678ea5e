"""Pseudo-perplexity of whole rows: every token is predicted from all others of its row.

The pseudo-log-likelihood of Salazar et al. 2020 (section 2, https://arxiv.org/abs/1910.14659), with
the within-word rule of Kauf and Ivanova 2023 (https://arxiv.org/abs/2305.10588): while a token is
predicted, the tokens after it in its word are masked too, so that the parts of a long word do not
give one another away. It costs as many forward passes as a row has tokens.

Legend: L length, n ordinary tokens of a row, N parts of rows (what one document has in a row).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fitb.corpus.wordpiece import append
from fitb.data.batch import Batch
from fitb.data.masking import Masked, Vocabulary, word_numbers
from fitb.evaluation.count import parts_of
from fitb.evaluation.data_parallel import Ranks
from fitb.evaluation.measure import EvaluationSet
from fitb.evaluation.score import Predictor, score


@dataclass(frozen=True)
class TextCounts:
    """Sums over the tokens of parts of rows.

    Args:
        documents: (N,) int64, document numbers in the split.
        nats: (N,) float64, minus the log-probabilities of the tokens.
        tokens: (N,) int64, number of tokens.
        num_bytes: (N,) int64, UTF-8 bytes of their text, spaces between words included.
    """

    documents: NDArray[np.int64]
    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    num_bytes: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[TextCounts]) -> TextCounts:
        """Concatenate the counts of several rows."""
        names = ("documents", "nats", "tokens", "num_bytes")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def count_texts(
    where: EvaluationSet,
    rows: NDArray[np.int64],
    predictors: Mapping[str, Predictor],
    ranks: Ranks,
    batch_rows: int = 64,
) -> dict[str, TextCounts]:
    """Predict every ordinary token of rows; the tail of a word that the row before cut is context.

    Args:
        where: the set.
        rows: (R,) int64, row numbers in the split.
        predictors: models by name, in eval mode.
        ranks: processes that share the rows.
        batch_rows: masked copies of a row per forward pass.
    Returns: counts by name of the model; empty on ranks other than 0.
    """
    pieces = where.tokenizer.convert_ids_to_tokens(list(range(where.vocabulary.size)))
    found = {
        i: _count(where, rows[i], predictors, pieces, batch_rows) for i in ranks.share(len(rows))
    }
    gathered = list(ranks.gathered(found).values())
    if not ranks.world.is_main:
        return {}
    return {name: TextCounts.joined([each[name] for each in gathered]) for name in predictors}


def _count(
    where: EvaluationSet,
    row: np.int64,
    predictors: Mapping[str, Predictor],
    pieces: Sequence[str],
    batch_rows: int,
) -> dict[str, TextCounts]:
    read = where.shards.read(np.array([row]))
    words = word_numbers(read.input_ids, read.word_starts, where.vocabulary)[0]
    batch, places = each_token_masked(read.input_ids[0], words, where.vocabulary)
    nats = {name: [np.zeros(0)] for name in predictors}
    with torch.no_grad():
        for begin in range(0, len(places), batch_rows):
            scores = score(predictors, batch.part(begin, begin + batch_rows), judged=False)
            for name, each in scores.items():
                nats[name].append(each.loss)
    rows_of, part = parts_of(
        where.shards,
        np.array([row]),
        read.input_ids,
        (np.zeros(len(places), dtype=np.int64), places),
        where.vocabulary,
    )
    size = len(rows_of[1])
    tokens = np.bincount(part, minlength=size)
    spelt = _bytes([pieces[token] for token in read.input_ids[0][places].tolist()])
    num_bytes = np.bincount(part, weights=spelt, minlength=size).astype(np.int64)
    return {
        name: TextCounts(
            rows_of[1],
            np.bincount(part, weights=np.concatenate(losses), minlength=size).astype(np.float64),
            tokens,
            num_bytes,
        )
        for name, losses in nats.items()
    }


def each_token_masked(
    input_ids: NDArray[np.int64], words: NDArray[np.int64], vocabulary: Vocabulary
) -> tuple[Batch, NDArray[np.int64]]:
    """Return n copies of a row, in each of which one token and the rest of its word is masked.

    Args:
        input_ids: (L,) int64, token ids.
        words: (L,) int64, from `word_numbers`.
        vocabulary: vocabulary of the tokenizer.
    Returns: a batch of n rows with one masked position that counts, and (n,) int64 these positions.
    """
    places = np.flatnonzero(words >= 0)
    copies = np.repeat(input_ids[None].astype(np.int64), len(places), axis=0)
    rest = (words == words[places, None]) & (np.arange(len(words)) >= places[:, None])
    copies[rest] = vocabulary.mask_id
    real = np.broadcast_to((input_ids != vocabulary.pad_id).astype(np.int64), copies.shape)
    labels = input_ids[places, None].astype(np.int64)
    masked = Masked(copies, real.copy(), places[:, None], labels, words[places, None])
    return Batch.of(masked), places


def _bytes(pieces: Sequence[str]) -> list[int]:
    """UTF-8 bytes that each subword adds to the text before it, with the space between words."""
    text, sizes = "", []
    for piece in pieces:
        longer = append(text, piece)
        sizes.append(len(longer[len(text) :].encode()))
        text = longer[-4:]
    return sizes
