"""Exact matches of words of 1, 2, 3, ... subwords, by how they are searched for.

    python tests/benchmarks/blanks.py --model runs/tb4/export --shards data/shards --beam 10

Words of held-out rows are blanked one at a time, all their pieces at once, and filled by a beam, by
a greedy search, in the other orders, and as transformers' pipeline does (marginals): the likeliest
piece of each slot by itself. The number of pieces is given but in the last column.

Legend: L length, M slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fitb.base import rng
from fitb.bench.timing import machine
from fitb.data.masking import Vocabulary, word_numbers
from fitb.infer.blanks import Layout
from fitb.infer.decode import decode
from fitb.infer.lexicon import lexicon_of
from fitb.infer.passes import Found, PassLimits, Steps, drive
from fitb.infer.refine import refine
from fitb.infer.request import Order, score_of
from fitb.infer.rules import WordOrSpan
from fitb.infer.scorer import Scorer, load_scorer
from fitb.shards.shard_set import ShardSet

_WORDS = 31  # what a key is for
_LIMITS = PassLimits()


@dataclass(frozen=True)
class Word:
    """A word of a held-out row.

    Args:
        row: (L,) token ids, all of them true.
        begin: of its pieces in the row.
        end: one after the last.
    """

    row: tuple[int, ...]
    begin: int
    end: int

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.row[self.begin : self.end]

    def layout(self, scorer: Scorer, length: int, kind: str = "mask") -> Layout:
        """Return the row with so many slots in the place of the word."""
        masks = (scorer.tokenizer.mask_token_id,) * length
        row = (*self.row[: self.begin], *masks, *self.row[self.end :])
        rules = () if kind == "mask" else (WordOrSpan(lexicon_of(scorer.tokenizer), "word", False),)
        slots = tuple((self.begin + piece,) for piece in range(length))
        return Layout(row, (tuple(range(length)),), slots, (rules,))


def bench(
    model: str = "runs/demo/teacher/export",
    shards: str = "runs/demo/shards",
    lengths: tuple[int, ...] = (1, 2, 3, 4),
    words: int = 300,
    beam: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Count exact matches by number of pieces and method, all on the same words.

    Args:
        model: Hugging Face folder with a trained MLM head.
        shards: whose validation split gives the words.
        lengths: numbers of pieces looked at.
        words: of each length, at most.
        beam: partial fillings kept.
        seed: of the choice of words.
    """
    held_out = ShardSet.open(shards, "validation")
    scorer = load_scorer(model)
    by_length: dict[str, Any] = {}
    for length in lengths:
        chosen = choose_words(held_out, scorer, length, words, seed)
        right = {
            "beam": _search(scorer, chosen, beam),
            "greedy": _search(scorer, chosen, 1),
            "marginals": _marginals(scorer, chosen),
            "left_to_right": _search(scorer, chosen, beam, "left_to_right"),
            "refine": _search(scorer, chosen, beam, "refine"),
            "unknown_length": _unknown_length(scorer, chosen, lengths, beam),
        }
        by_length[str(length)] = _compared(right, len(chosen))
    return {
        "bench": "blanks",
        **machine(),
        "model": model,
        "shards": held_out.fingerprint,
        "beam": beam,
        "pieces": by_length,
    }


def choose_words(
    shards: ShardSet, scorer: Scorer, length: int, number: int, seed: int
) -> list[Word]:
    """Return words of so many pieces, one of a row at most, from rows in a keyed order.

    A word has a letter or a digit, and no piece of it is unknown.
    """
    vocabulary, lexicon = Vocabulary.of(scorer.tokenizer), lexicon_of(scorer.tokenizer)
    order = np.argsort(rng.keyed(seed, _WORDS, length, np.arange(shards.num_rows)))
    found: list[Word] = []
    for place in order:
        row = np.array([place], dtype=np.int64)
        read = shards.read(row)
        words = word_numbers(read.input_ids, read.word_starts, vocabulary)[0]
        counts = np.bincount(words[words >= 0])
        has_letter = np.isin(
            np.arange(len(counts)), words[(words >= 0) & lexicon.has_letter[read.input_ids[0]]]
        )
        fit = np.flatnonzero((counts == length) & has_letter)
        if not len(fit):
            continue
        chosen = fit[int(rng.keyed(seed, _WORDS, length, place)) % len(fit)]
        places = np.flatnonzero(words == chosen)
        ids = tuple(int(token) for token in read.input_ids[0])
        if scorer.tokenizer.unk_token_id not in ids[places[0] : places[-1] + 1]:
            found.append(Word(ids, int(places[0]), int(places[-1]) + 1))
        if len(found) == number:
            break
    return found


def _search(
    scorer: Scorer, words: Sequence[Word], beam: int, order: Order = "confidence"
) -> NDArray[np.bool_]:
    layouts = [word.layout(scorer, len(word.tokens)) for word in words]
    beams = _driven(scorer, decode(layouts, beam, [order] * len(words), _LIMITS))
    if order == "refine":
        beams = [
            _driven(scorer, refine(layout, found, beam, _LIMITS))
            for layout, found in zip(layouts, beams, strict=True)
        ]
    return np.array(
        [found[0].tokens == word.tokens for found, word in zip(beams, words, strict=True)],
        dtype=np.bool_,
    )


def _driven(scorer: Scorer, search: Steps[Found]) -> Found:
    (found,) = drive(scorer, [search], _LIMITS)
    return found


def _marginals(scorer: Scorer, words: Sequence[Word], batch: int = 32) -> NDArray[np.bool_]:
    """The likeliest piece of each slot while all others are open, as the pipeline gives them."""
    right = []
    for begin in range(0, len(words), batch):
        some = words[begin : begin + batch]
        layouts = [word.layout(scorer, len(word.tokens)) for word in some]
        logits = scorer.logits(
            [layout.row for layout in layouts],
            [[slot for slots in layout.variables for slot in slots] for layout in layouts],
        )
        best = iter(torch.split(logits.argmax(dim=-1), [len(word.tokens) for word in some]))
        right += [tuple(next(best).tolist()) == word.tokens for word in some]
    return np.array(right, dtype=np.bool_)


def _unknown_length(
    scorer: Scorer, words: Sequence[Word], lengths: Sequence[int], beam: int
) -> NDArray[np.bool_]:
    """A beam for each of the lengths; the best score wins."""
    found: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in words]
    for length in lengths:
        layouts = [word.layout(scorer, length, "word") for word in words]
        orders: list[Order] = ["confidence"] * len(words)
        beams = _driven(scorer, decode(layouts, beam, orders, _LIMITS))
        for mine, fillings in zip(found, beams, strict=True):
            mine += [(score_of(one.log_probability, length), one.tokens) for one in fillings]
    return np.array(
        [max(mine)[1] == word.tokens for mine, word in zip(found, words, strict=True)],
        dtype=np.bool_,
    )


def _compared(right: dict[str, NDArray[np.bool_]], num_words: int) -> dict[str, Any]:
    """Shares of words filled exactly, and on how many words the beam and another disagree."""
    beam = right["beam"]
    return {
        "words": num_words,
        "exact": {name: float(mine.mean()) if num_words else None for name, mine in right.items()},
        "beam_alone_right": {n: int((beam & ~mine).sum()) for n, mine in right.items()},
        "beam_alone_wrong": {n: int((~beam & mine).sum()) for n, mine in right.items()},
    }


if __name__ == "__main__":
    from command import print_json

    print_json(bench)
