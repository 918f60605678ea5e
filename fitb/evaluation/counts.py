"""Counts of right answers, as sums per part of a row and category: they add up over rows and ranks.

A part of a row is what one document has in it. Legend: N or P parts, B rows, L length, M masked
positions of a batch, G groups (all words, then categories of words), C columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fitb.corpus.wordpiece import bare

NUM_BINS = 15  # of the calibration error: Guo et al. 2017
GAPS = tuple(f"gap_{number:02}" for number in range(NUM_BINS))
PLAIN = ("loss_sum", "num_slots", "top1", "top5", "num_words", "words_right")
JUDGED = (*PLAIN, "f1_sum", *GAPS)
COLUMNS = (*JUDGED, "agreed", "kl_sum")


@dataclass(frozen=True)
class RowCounts:
    """Right answers of a model in each part of a row.

    Args:
        rows: (N,) int64, row numbers in the split; every row has a part, even one without a
            masked position.
        documents: (N,) int64, numbers of documents in the split: they key the bootstrap.
        sums: (N, G, C) float64; C counts the first columns of COLUMNS that were asked for:
            loss_sum: nats over masked positions.
            num_slots, top1, top5: masked positions; those whose true token has rank 1, rank 5 or
                better.
            num_words: words that start in the row and all of whose tokens are masked.
            words_right: those of them all of whose tokens have rank 1.
            f1_sum: over those words, the share of their subwords that is right in any order.
            gap_BB: over the positions whose prediction has a probability in that bin, 1 where it is
                right less that probability.
            agreed, kl_sum: positions where the prediction is the teacher's; KL(teacher || model),
                nats.

    A rank is 1 + the number of tokens with a strictly greater logit: ties are won. The prediction
    is the true token where its rank is 1, else the first of those with the largest logit.
    """

    rows: NDArray[np.int64]
    documents: NDArray[np.int64]
    sums: NDArray[np.float64]

    def column(self, name: str, group: int = 0) -> NDArray[np.float64]:
        """(N,) float64, one column of one group."""
        return self.sums[:, group, COLUMNS.index(name)]

    def totals(self) -> NDArray[np.float64]:
        """(G, C) float64; add those of all ranks, then metrics_of."""
        return np.asarray(self.sums.sum(axis=0))

    @classmethod
    def joined(cls, parts: Sequence[RowCounts]) -> RowCounts:
        """Return the counts of several sets of rows as one."""
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.documents for part in parts]),
            np.concatenate([part.sums for part in parts]),
        )

    @classmethod
    def nothing(cls, num_columns: int, num_groups: int = 1) -> RowCounts:
        """Return the counts of no rows."""
        none = np.zeros(0, dtype=np.int64)
        return cls(none, none, np.zeros((0, num_groups, num_columns)))


@dataclass(frozen=True)
class Scores:
    """A model's answers at the masked positions of a batch, in row-major order.

    Args:
        loss: (M,) float64, nats.
        rank: (M,) int64, of the true token.
        predicted: (M,) int64; None where only plain columns are wanted.
        confidence: (M,) float64, probability of the prediction.
        agreed: (M,) bool, whether the teacher predicts the same; None where there is none.
        kl: (M,) float64, KL(teacher || model) in nats.
    """

    loss: NDArray[np.float64]
    rank: NDArray[np.int64]
    predicted: NDArray[np.int64] | None = None
    confidence: NDArray[np.float64] | None = None
    agreed: NDArray[np.bool_] | None = None
    kl: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Slots:
    """The masked positions of a batch, without any model.

    Args:
        rows, documents: (P,) int64, of the parts of rows, as in RowCounts.
        part: (M,) int64, which of them the position is in.
        row: (M,) int64, place of its row in the batch.
        labels: (M,) int64, true tokens.
        words: (B, L) int64, of word_numbers.
        slot_words: (M,) int64, number of its word in the row.
        groups: (B, L, G) bool by word number; the first group is of all words.
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
    """Sum masked positions, and words all of whose tokens are masked, by part and group.

    Args:
        classes: (V,) int64, of `piece_classes`; needed where the scores hold predictions.
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
        by_word["f1_sum"] = overlap[whole] / num_masked[whole]
        by_slot |= _gaps(scores.confidence, scores.rank <= 1)
        columns = JUDGED
    if scores.agreed is not None and scores.kl is not None:
        by_slot |= {"agreed": scores.agreed.astype(np.float64), "kl_sum": scores.kl}
        columns = COLUMNS
    part_of = np.zeros(num_rows * length, dtype=np.int64)  # of each word: a document's alone
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
    """Return which subwords are the same text: (V,) int64, equal where their normal form is.

    The normal form is SQuAD's (lower case, no punctuation; Rajpurkar et al. 2016, section 6.1) of
    a subword without its ##. SQuAD leaves articles out as well, and so would call any two texts
    equal of which nothing is left. A blank of one word has no other content: where nothing would
    be left the subword stands as it is, and an article is a word like any other.
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
    """(words,) float64, subwords that true and predicted bags of each word share.

    Both bags have a subword for each masked token of the word, so precision, recall and F1 are all
    this number over that one.
    """
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
    """Right less confidence of each position, in the column of its bin: (b / 15, (b + 1) / 15]."""
    known = np.nan_to_num(confidence, nan=1.0)
    number = np.clip(np.ceil(known * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    gap = right - confidence
    return {name: np.where(number == b, gap, 0.0) for b, name in enumerate(GAPS)}
