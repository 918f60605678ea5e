"""Requests and results of filling."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fitb.config.checks import check_range

Order = Literal["left_to_right", "confidence", "refine"]
Kind = Literal["mask", "word", "span"]
Backend = Literal["torch", "onnx", "onnx-int8"]

_LENGTH_EXPONENT = 0.6


@dataclass(frozen=True)
class Constraint:
    """Constraints of an answer; all of them must hold.

    Args:
        candidates: the only answers allowed, of any number of subwords each.
        regex: regular expression that the whole answer must match.
        prefix: prefix of the answer.
        banned: words that the answer must not contain, ignoring case.
    """

    candidates: tuple[str, ...] = ()
    regex: str = ""
    prefix: str = ""
    banned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """Settings of the search.

    Args:
        order: masked position to fill next: the leftmost (left_to_right), the most confident
            (confidence), or the latter followed by iterative refinement (refine).
        beam: beam width; 1 is greedy.
        max_pieces: most subwords of a blank of unknown length.
        top_k: most fillings returned, best first.
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
        text: text in which [MASK] is one missing subword, ___ (three underscores or more) one word
            of any number of subwords, and [SPAN] any subwords, also several words.
        search: settings of the search.
        constraints: one per blank in the order of the text, or one for all, or none.
        same: groups of blanks, numbered from 0, that must have the same answer.
    """

    text: str
    search: Search = field(default_factory=Search)
    constraints: tuple[Constraint, ...] = ()
    same: tuple[tuple[int, ...], ...] = ()

    @property
    def words(self) -> list[str]:
        """All candidates, banned words and prefixes of the constraints."""
        given = self.constraints
        return [word for one in given for word in (*one.candidates, *one.banned, one.prefix)]


@dataclass(frozen=True)
class Blank:
    """A blank of the text, from character `begin` to `end` (excluded)."""

    begin: int
    end: int
    kind: Kind


@dataclass(frozen=True)
class Answer:
    """The answer to one blank.

    Args:
        text: answer as it is written in the sentence.
        begin: first character in the sentence.
        end: one after the last character.
        tokens: token ids.
        pieces: the same subwords as the tokenizer writes them; '##' continues a word.
        log_probability: natural log-probability, summed over the subwords, each given those filled
            before it.
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
    """Return the length-normalised score by which fillings of different lengths are ranked.

    A sum of log-probabilities favours few subwords; a mean favours long predictable sequences. As
    in Wu et al. (2016, section 7) the sum is divided by a power of the length, here of n instead
    of (5 + n) / 6; the exponent is measured (docs/experiments.md).

    Args:
        log_probability: natural log-probability of the filling.
        pieces: number of subwords.
    """
    return log_probability / math.pow(pieces, _LENGTH_EXPONENT)


@dataclass(frozen=True)
class Filling:
    """One way to fill all blanks of a text.

    Args:
        sentence: the user's text with the answers in place of the blanks.
        answers: answer to each blank, in order.
        log_probability: natural joint log-probability, the sum of the answers'; under `refine` the
            pseudo-log-likelihood: every subword given all others.
        score: log_probability / number of subwords ** 0.6, by which fillings are ranked.
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
    """A text, its blanks and its fillings, best first.

    There are no fillings only if no answer satisfies the constraints.
    """

    text: str
    blanks: tuple[Blank, ...]
    fillings: tuple[Filling, ...]
