"""Rules on the subwords of a blank: its kind, and the user's constraints.

A rule sees the token ids of one blank of known length, OPEN at positions that are not filled.
`mask` returns a vector over the vocabulary; `test` checks one token at a time, likeliest first, for
rules that depend on the text of the answer. Both are called once per position.

Legend: V vocabulary.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fitb.base.errors import ConfigError
from fitb.corpus.wordpiece import append, join
from fitb.infer.lexicon import Lexicon
from fitb.infer.pattern import Pattern
from fitb.infer.request import Constraint, Kind

OPEN = -1  # in place of a token id: not filled yet
_MAX_CANDIDATES = 10_000  # per blank

Pieces = Sequence[int]
Test = Callable[[int], bool]  # of a token


@dataclass(frozen=True)
class Rule:
    """A constraint on the subwords of a blank; the base class allows anything."""

    lexicon: Lexicon
    in_order: ClassVar[bool] = False  # whether the blank must be filled from left to right

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        """Return the tokens allowed at position `at`, (V,) bool; None allows all."""
        return None

    def test(self, pieces: Pieces, at: int) -> Test | None:
        """Return a predicate for tokens that `mask` allows at position `at`; None allows all."""
        return None


@dataclass(frozen=True)
class WordOrSpan(Rule):
    """A whole word (a word start and its continuations) or a span of any text.

    Args:
        kind: "word" or "span".
        glued: whether the blank touches a word on its left; the answer then continues that word,
            or is a word that the tokenizer splits from any letter before it, like Han after kana.
    """

    kind: Kind
    glued: bool

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        if at:
            return self._goes_on
        return self._goes_on | self.lexicon.parted if self.glued else self._begins

    @cached_property
    def _begins(self) -> NDArray[np.bool_]:
        words = self.lexicon.is_text & ~self.lexicon.continues
        return words & self.lexicon.has_letter if self.kind == "word" else words

    @cached_property
    def _goes_on(self) -> NDArray[np.bool_]:
        if self.kind == "span":
            return self.lexicon.is_text
        return self.lexicon.is_text & self.lexicon.continues & self.lexicon.has_letter


@dataclass(frozen=True)
class OneOf(Rule):
    """One of some answers, given as token ids of the length of the blank."""

    answers: tuple[tuple[int, ...], ...]

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        known = [
            self._having.get((place, piece), set())
            for place, piece in enumerate(pieces)
            if piece != OPEN and place != at
        ]
        fitting = set.intersection(*known) if known else range(len(self.answers))
        allowed = np.zeros(len(self.lexicon.pieces), dtype=np.bool_)
        allowed[[self.answers[number][at] for number in fitting]] = True
        return allowed

    @cached_property
    def _having(self) -> dict[tuple[int, int], set[int]]:
        """Indices of the answers by (position, token)."""
        found = defaultdict(set)
        for number, answer in enumerate(self.answers):
            for place_and_token in enumerate(answer):
                found[place_and_token].add(number)
        return dict(found)


class ReadInOrder(Rule):
    """A rule on the text of the answer, which is filled from left to right."""

    in_order = True

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        return self.lexicon.is_text


@dataclass(frozen=True)
class Matches(ReadInOrder):
    """The whole answer matches a regular expression."""

    pattern: Pattern

    def test(self, pieces: Pieces, at: int) -> Test | None:
        text, whole = _around(self.lexicon, pieces, at)
        judge = self.pattern.matches if whole else self.pattern.begins
        return lambda token: judge(text(token))


@dataclass(frozen=True)
class Begins(ReadInOrder):
    """The answer begins with a prefix, given in normalised form."""

    prefix: str

    def test(self, pieces: Pieces, at: int) -> Test | None:
        text, whole = _around(self.lexicon, pieces, at)

        def judge(token: int) -> bool:
            found = text(token)
            return found.startswith(self.prefix) or (not whole and self.prefix.startswith(found))

        return judge


@dataclass(frozen=True)
class NotBanned(Rule):
    """The answer contains none of some words, given in normalised form."""

    words: frozenset[str]

    def test(self, pieces: Pieces, at: int) -> Test | None:
        text, whole = _around(self.lexicon, pieces, at)

        def judge(token: int) -> bool:
            found = text(token).lower()
            return found not in self.words and self.words.isdisjoint(re.findall(r"\w+", found))

        return judge if whole else None


def _around(lexicon: Lexicon, pieces: Pieces, at: int) -> tuple[Callable[[int], str], bool]:
    """Return a function from the token at `at` to the text, and whether that text is complete.

    If subwords to the right are open, the text ends after the token.
    """
    whole = OPEN not in (*pieces[:at], *pieces[at + 1 :])
    before = join(lexicon.pieces[piece] for piece in pieces[:at])
    after = [lexicon.pieces[piece] for piece in pieces[at + 1 :]] if whole else []

    def text(token: int) -> str:
        found = append(before, lexicon.pieces[token])
        for piece in after:
            found = append(found, piece)
        return found

    return text, whole


class ConstraintReader:
    """Cached parsing of the constraints of one text: regexes, banned words and candidates.

    Args:
        lexicon: vocabulary of the model.
    """

    pattern: Callable[[str], Pattern]
    banned: Callable[[tuple[str, ...]], frozenset[str]]
    candidates: Callable[[tuple[str, ...], bool], dict[tuple[int, ...], str]]

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.pattern = cache(partial(Pattern, ignore_case=lexicon.lowercases))
        self.banned = cache(partial(_normalised, lexicon))
        self.candidates = cache(partial(_tokens_of, lexicon))


def _normalised(lexicon: Lexicon, words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(lexicon.normalise(word).lower().strip() for word in words)


def rules_of(
    reader: ConstraintReader,
    kind: Kind,
    constraint: Constraint,
    glued: bool,
    answers: Sequence[tuple[int, ...]],
) -> list[Rule]:
    """Return the rules of a blank of known length.

    Args:
        reader: cache of the text's constraints.
        kind: kind of the blank.
        constraint: constraint of the blank.
        glued: whether the blank continues a word on its left.
        answers: token ids of those candidates that have the length of the blank.
    Raises: ConfigError if the regex is invalid.
    """
    lexicon = reader.lexicon
    rules: list[Rule] = []
    if constraint.candidates:
        rules.append(OneOf(lexicon, tuple(answers)))
    elif kind != "mask":
        rules.append(WordOrSpan(lexicon, kind, glued))
    if constraint.regex:
        rules.append(Matches(lexicon, reader.pattern(constraint.regex)))
    if constraint.prefix:
        rules.append(Begins(lexicon, lexicon.normalise(constraint.prefix)))
    if constraint.banned:
        rules.append(NotBanned(lexicon, reader.banned(constraint.banned)))
    return rules


def _tokens_of(
    lexicon: Lexicon, candidates: Sequence[str], glued: bool
) -> dict[tuple[int, ...], str]:
    """Return the candidates as the user wrote them, by token ids; `glued` is as in `rules_of`."""
    if len(candidates) > _MAX_CANDIDATES:
        raise ConfigError(
            f"{len(candidates):,} candidates; at most {_MAX_CANDIDATES:,} for a blank"
        )
    found: dict[tuple[int, ...], str] = {}
    for number, candidate in enumerate(candidates, 1):
        ids = lexicon.encode_continued(candidate) if glued else lexicon.encode(candidate)
        if not ids or lexicon.unk in ids:
            raise ConfigError(
                f"candidate {number} is empty or has characters that this vocabulary cannot encode;"
                " leave it out"
            )
        found.setdefault(tuple(ids), candidate)
    return found
