"""What can be asked of filling, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fitb.config.schema import check_range

Order = Literal["left_to_right", "confidence", "refine"]
Kind = Literal["mask", "word", "span"]
Backend = Literal["torch", "onnx", "onnx-int8"]

_LENGTH_EXPONENT = 0.6


@dataclass(frozen=True)
class Constraint:
    """What an answer must be; all that is given must hold.

    Args:
        candidates: the only answers allowed, each whole, of any number of pieces.
        regex: the whole answer, as it will stand in the text, matches it.
        prefix: the answer begins with it.
        banned: words that the answer must not hold, in any case.
    """

    candidates: tuple[str, ...] = ()
    regex: str = ""
    prefix: str = ""
    banned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """How answers are looked for.

    Args:
        order: which masked position is filled next: the leftmost; the one where the model is most
            certain; or, refine, the latter, after which each is asked again given all others
            until nothing changes.
        beam: partial fillings kept of each text; 1 is greedy.
        max_pieces: pieces of a blank of unknown length at most.
        top_k: fillings returned at most, the best first.
    """

    order: Order = "confidence"
    beam: int = 5
    max_pieces: int = 4
    top_k: int = 5

    def __post_init__(self) -> None:
        check_range("", self, "beam", "max_pieces", "top_k", low=1)


@dataclass(frozen=True)
class FillRequest:
    """A text with blanks.

    Args:
        text: blanks are written [MASK], exactly one piece; ___ (three underscores or more), one
            word of any number of pieces; [SPAN], any pieces, several words too.
        search: how answers are looked for.
        constraints: one for each blank in the order of the text, or one for all, or none.
        same: groups of blanks, numbered from 0, whose answers are equal.
    """

    text: str
    search: Search = field(default_factory=Search)
    constraints: tuple[Constraint, ...] = ()
    same: tuple[tuple[int, ...], ...] = ()


def constraint_chars(request: FillRequest) -> int:
    """Characters of all words that the constraints of a text list."""
    return sum(
        len(word)
        for one in request.constraints
        for word in (*one.candidates, *one.banned, one.prefix)
    )


@dataclass(frozen=True)
class Blank:
    """A blank as the user wrote it: characters begin to end of the request's text."""

    begin: int
    end: int
    kind: Kind


@dataclass(frozen=True)
class Answer:
    """What stands in one blank.

    Args:
        text: as it stands in the sentence.
        begin: first character in the sentence.
        end: one after the last.
        tokens: ids in the vocabulary.
        pieces: the same subwords as the tokenizer writes them; '##' continues a word.
        log_probability: natural, summed over its pieces, each given what had been filled before it.
    """

    text: str
    begin: int
    end: int
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    log_probability: float

    @property
    def probability(self) -> float:
        return math.exp(self.log_probability)


def score_of(log_probability: float, pieces: int) -> float:
    """Make fillings of different numbers of pieces comparable.

    Summed, log-probabilities favour few pieces; their mean favours runs of pieces that follow from
    one another. A power between is as in Wu et al. (2016, section 7), but of n instead of
    (5 + n) / 6; its exponent is measured (docs/experiments.md).
    """
    return log_probability / math.pow(pieces, _LENGTH_EXPONENT)


@dataclass(frozen=True)
class Filling:
    """One way to fill all blanks of a text.

    Args:
        sentence: the user's text with the answers in place of the blanks.
        answers: in the order of the blanks.
        log_probability: the joint one, natural: the sum of the answers'. Under `refine` it is the
            pseudo-log-likelihood: every piece given all others.
        score: log_probability / pieces ** 0.6; fillings are ranked by it.
    """

    sentence: str
    answers: tuple[Answer, ...]
    log_probability: float
    score: float

    @property
    def probability(self) -> float:
        return math.exp(self.log_probability)


@dataclass(frozen=True)
class Filled:
    """A text, its blanks, and the best ways to fill them, best first.

    There is no filling only where no answer meets the constraints.
    """

    text: str
    blanks: tuple[Blank, ...]
    fillings: tuple[Filling, ...]
