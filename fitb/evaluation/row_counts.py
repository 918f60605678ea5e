"""Counts of correct predictions per part of a row and word category; additive over rows and ranks.

A part of a row is what one document has in it. Legend: N or P parts, B rows, L length, M masked
positions of a batch, G groups (all words, then categories of words), C columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fitb.corpus.wordpiece import bare

NUM_BINS = 15  # bins of the calibration error (Guo et al. 2017)
GAPS = tuple(f"gap_{number:02}" for number in range(NUM_BINS))
PLAIN = ("loss_sum", "num_slots", "top1", "top5", "num_words", "words_right")
JUDGED = (*PLAIN, "f1_sum", *GAPS)
COLUMNS = (*JUDGED, "agreed", "kl_sum")


@dataclass(frozen=True)
class RowCounts:
    """Counts of a model's correct predictions in each part of a row.

    Args:
        rows: (N,) int64, row numbers in the split; a row without masked positions has a part too.
        documents: (N,) int64, document numbers in the split, the units of the bootstrap.
        sums: (N, G, C) float64; the first C of COLUMNS:
            loss_sum: cross-entropy in nats, summed over masked positions.
            num_slots, top1, top5: number of masked positions, and of those whose true token has
                rank 1, or at most 5.
            num_words: number of words that start in the row and are masked as a whole.
            words_right: number of those words with all tokens of rank 1.
            f1_sum: sum over those words of the share of subwords that are right in any order.
            gap_BB: sum of (correct - confidence) over positions whose confidence is in bin BB.
            agreed, kl_sum: number of positions with the teacher's prediction; sum of
                KL(teacher || model) in nats.

    A rank is 1 + the number of tokens with a strictly greater logit, so ties count as correct. The
    prediction is the true token if its rank is 1, else the first token with the largest logit.
    """

    rows: NDArray[np.int64]
    documents: NDArray[np.int64]
    sums: NDArray[np.float64]

    def column(self, name: str, group: int = 0) -> NDArray[np.float64]:
        """Return one column of one group, (N,) float64."""
        return self.sums[:, group, COLUMNS.index(name)]

    def totals(self) -> NDArray[np.float64]:
        """Return the sums over all parts, (G, C) float64, the input of `metrics_of`."""
        return np.asarray(self.sums.sum(axis=0))

    @classmethod
    def joined(cls, parts: Sequence[RowCounts]) -> RowCounts:
        """Concatenate the counts of several sets of rows."""
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.documents for part in parts]),
            np.concatenate([part.sums for part in parts]),
        )

    @classmethod
    def nothing(cls, num_columns: int, num_groups: int = 1) -> RowCounts:
        """Return the counts of zero rows."""
        none = np.zeros(0, dtype=np.int64)
        return cls(none, none, np.zeros((0, num_groups, num_columns)))


@dataclass(frozen=True)
class Scores:
    """A model's predictions at the masked positions of a batch, in row-major order.

    Args:
        loss: (M,) float64, cross-entropy in nats.
        rank: (M,) int64, rank of the true token.
        predicted: (M,) int64, predicted token; None if only the columns of PLAIN are wanted.
        confidence: (M,) float64, probability of the prediction; None like `predicted`.
        agreed: (M,) bool, whether the teacher predicts the same; None without a teacher.
        kl: (M,) float64, KL(teacher || model) in nats; None without a teacher.
    """

    loss: NDArray[np.float64]
    rank: NDArray[np.int64]
    predicted: NDArray[np.int64] | None = None
    confidence: NDArray[np.float64] | None = None
    agreed: NDArray[np.bool_] | None = None
    kl: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Slots:
    """The masked positions of a batch, independent of any model.

    Args:
        rows, documents: (P,) int64, row and document number of each part, as in RowCounts.
        part: (M,) int64, index of the part of each masked position.
        row: (M,) int64, index of its row in the batch.
        labels: (M,) int64, true tokens.
        words: (B, L) int64, word number of each position, from `word_numbers`.
        slot_words: (M,) int64, word number of each masked position.
        groups: (B, L, G) bool, groups of each word by its number; the first group is all words.
    """

    rows: NDArray[np.int64]
    documents: NDArray[np.int64]
    part: NDArray[np.int64]
    row: NDArray[np.int64]
    labels: NDArray[np.int64]
    words: NDArray[np.int64]
    slot_words: NDArray[np.int64]
    groups: NDArray[np.bool_]


def count_rows(slots: Slots, scores: Scores, classes: NDArray[np.int64] | None = None) -> RowCounts:
    """Sum over masked positions, and over words masked as a whole, by part and group.

    Args:
        slots: masked positions of a batch.
        scores: a model's predictions there.
        classes: (V,) int64, from `piece_classes`; required if `scores` has predictions.
    """
    num_rows, length = slots.words.shape
    of_slot = slots.row * length + slots.slot_words
    of_token = (np.arange(num_rows)[:, None] * length + slots.words)[slots.words >= 0]
    num_masked = np.bincount(of_slot, minlength=num_rows * length)
    num_tokens = np.bincount(of_token, minlength=num_rows * length)
    whole = np.flatnonzero((num_masked > 0) & (num_masked == num_tokens))
    num_wrong = np.bincount(of_slot[scores.rank > 1], minlength=num_rows * length)
    by_slot: dict[str, NDArray[np.float64]] = {
        "loss_sum": scores.loss,
        "num_slots": np.ones(len(of_slot)),
        "top1": (scores.rank <= 1).astype(np.float64),
        "top5": (scores.rank <= 5).astype(np.float64),
    }
    by_word: dict[str, NDArray[np.float64]] = {
        "num_words": np.ones(len(whole)),
        "words_right": (num_wrong[whole] == 0).astype(np.float64),
    }
    columns: tuple[str, ...] = PLAIN
    if scores.predicted is not None and scores.confidence is not None:
        assert classes is not None
        overlap = _overlap(of_slot, slots.labels, scores.predicted, classes, num_rows * length)
        # Both bags have a subword per masked token: precision, recall and F1 are equal.
        by_word["f1_sum"] = overlap[whole] / num_masked[whole]
        by_slot |= _gaps(scores.confidence, scores.rank <= 1)
        columns = JUDGED
    if scores.agreed is not None and scores.kl is not None:
        by_slot |= {"agreed": scores.agreed.astype(np.float64), "kl_sum": scores.kl}
        columns = COLUMNS
    part_of = np.zeros(num_rows * length, dtype=np.int64)  # each word is in one document
    part_of[of_slot] = slots.part
    sums = np.zeros((len(slots.rows), slots.groups.shape[2], len(columns)))
    flat = slots.groups.reshape(num_rows * length, -1)
    for values, word in ((by_slot, of_slot), (by_word, whole)):
        for group in range(sums.shape[1]):
            inside = np.flatnonzero(flat[word, group])
            part = part_of[word[inside]]
            for name, value in values.items():
                sums[:, group, columns.index(name)] = np.bincount(
                    part, weights=value[inside], minlength=len(slots.rows)
                )
    return RowCounts(slots.rows, slots.documents, sums)


def piece_classes(pieces: Iterable[str]) -> NDArray[np.int64]:
    """Return equivalence classes of subwords, (V,) int64: equal if their normal forms are.

    The normal form is SQuAD's (lower case, no punctuation; Rajpurkar et al. 2016, section 6.1) of
    a subword without its ##. Unlike in SQuAD, articles count, and a subword of punctuation alone
    stays as it is, because a single word has no other content.

    Args:
        pieces: subwords by token id.
    """
    known: dict[str, int] = {}
    return np.array([known.setdefault(_normal(piece), len(known)) for piece in pieces], np.int64)


def _normal(piece: str) -> str:
    lower = bare(piece).lower()
    return "".join(c for c in lower if c.isalnum()) or lower


def _overlap(
    word: NDArray[np.int64],
    true: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: NDArray[np.int64],
    num_words: int,
) -> NDArray[np.float64]:
    """Return the size of the intersection of true and predicted bags, (num_words,) float64."""
    width = len(classes)
    keys = np.concatenate([word * width + classes[true], word * width + classes[predicted]])
    found, which = np.unique(keys, return_inverse=True)
    in_true = np.bincount(which[: len(word)], minlength=len(found))
    in_predicted = np.bincount(which[len(word) :], minlength=len(found))
    shared = np.minimum(in_true, in_predicted).astype(np.float64)
    return np.bincount(found // width, weights=shared, minlength=num_words).astype(np.float64)


def _gaps(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """Return correct - confidence of each position by bin (b / 15, (b + 1) / 15]."""
    known = np.nan_to_num(confidence, nan=1.0)
    number = np.clip(np.ceil(known * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    gap = right - confidence
    return {name: np.where(number == b, gap, 0.0) for b, name in enumerate(GAPS)}
