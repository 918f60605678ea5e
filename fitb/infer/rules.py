"""Which pieces may stand where in a blank: its kind, and what the user asks of its answer.

A rule sees the pieces of one blank of a known number of pieces, OPEN where nothing stands yet.
`mask` is fast and says which tokens are possible at a place; `test` judges one token at a time,
likeliest first, and is only there where a text must be read. Both are asked once for a place: what
is the same for all tokens is worked out once.

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

OPEN = -1
_MAX_CANDIDATES = 10_000

Pieces = Sequence[int]
Test = Callable[[int], bool]  # of a token


@dataclass(frozen=True)
class Rule:
    """What may stand in a blank; by itself, anything."""

    lexicon: Lexicon
    in_order: ClassVar[bool] = False  # whether its pieces must be filled from left to right

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        """Return which tokens may stand at a place, (V,) bool; None for all."""
        return None

    def test(self, pieces: Pieces, at: int) -> Test | None:
        """Return what says whether a token that `mask` lets through may stand there; None: all."""
        return None


@dataclass(frozen=True)
class WordOrSpan(Rule):
    """A word: one that begins as words do and then goes on. A span: any text.

    Args:
        glued: whether a word before the blank goes on in it: that word's rest, or a word that the
            tokenizer parts from any letter before it, as Han behind kana.
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
    """One of these answers, each a tuple of as many tokens as the blank has pieces."""

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
        """The numbers of the answers that have a token at a place."""
        found = defaultdict(set)
        for number, answer in enumerate(self.answers):
            for place_and_token in enumerate(answer):
                found[place_and_token].add(number)
        return dict(found)


class ReadInOrder(Rule):
    """An answer whose text is read as far as it stands: pieces to its right may be open."""

    in_order = True

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        return self.lexicon.is_text


@dataclass(frozen=True)
class Matches(ReadInOrder):
    """An answer whose text a regular expression matches as a whole."""

    pattern: Pattern

    def test(self, pieces: Pieces, at: int) -> Test | None:
        text, whole = _around(self.lexicon, pieces, at)
        judge = self.pattern.matches if whole else self.pattern.begins
        return lambda token: judge(text(token))


@dataclass(frozen=True)
class Begins(ReadInOrder):
    """An answer that begins with a prefix, which is normalised."""

    prefix: str

    def test(self, pieces: Pieces, at: int) -> Test | None:
        text, whole = _around(self.lexicon, pieces, at)
        prefix = self._in_case(self.prefix)

        def judge(token: int) -> bool:
            found = self._in_case(text(token))
            return found.startswith(prefix) or (not whole and prefix.startswith(found))

        return judge

    def _in_case(self, text: str) -> str:
        return text.lower() if self.lexicon.lowercases else text


@dataclass(frozen=True)
class NotBanned(Rule):
    """An answer that holds none of these words, which are normalised."""

    words: frozenset[str]

    def test(self, pieces: Pieces, at: int) -> Test | None:
        text, whole = _around(self.lexicon, pieces, at)

        def judge(token: int) -> bool:
            found = text(token).lower()
            return found not in self.words and self.words.isdisjoint(re.findall(r"\w+", found))

        return judge if whole else None


def _around(lexicon: Lexicon, pieces: Pieces, at: int) -> tuple[Callable[[int], str], bool]:
    """Return what puts a token at a place, and whether the text is whole then.

    The text ends behind the token where pieces to its right are open.
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
    """Constraints of one text in the form that its rules take; each part is read once.

    Args:
        lexicon: of the model.
    """

    pattern: Callable[[str], Pattern]
    banned: Callable[[tuple[str, ...]], frozenset[str]]
    candidates: Callable[[tuple[str, ...], bool], dict[tuple[int, ...], str]]

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.pattern = cache(partial(Pattern, ignore_case=lexicon.lowercases))
        self.banned = cache(partial(_normalised, lexicon))
        self.candidates = cache(partial(tokens_of, lexicon))


def _normalised(lexicon: Lexicon, words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(lexicon.normalise(word).lower().strip() for word in words)


def rules_of(
    reader: ConstraintReader,
    kind: Kind,
    constraint: Constraint,
    glued: bool,
    answers: Sequence[tuple[int, ...]],
) -> list[Rule]:
    """Return what must hold in a blank.

    Args:
        reader: of the text's constraints.
        glued: whether a letter or a digit touches the blank on its left.
        answers: tokens of the constraint's candidates that are as long as the blank.
    Raises: ConfigError where the regex is none.
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


def tokens_of(
    lexicon: Lexicon, candidates: Sequence[str], glued: bool
) -> dict[tuple[int, ...], str]:
    """Return the tokens of each candidate, with the candidate as the user wrote it.

    Raises: ConfigError where the vocabulary cannot write one.
    """
    if len(candidates) > _MAX_CANDIDATES:
        raise ConfigError(
            f"{len(candidates):,} candidates; at most {_MAX_CANDIDATES:,} for a blank"
        )
    found: dict[tuple[int, ...], str] = {}
    for number, candidate in enumerate(candidates, 1):
        ids = lexicon.encode_continued(candidate) if glued else lexicon.encode(candidate)
        if not ids or lexicon.unk in ids:
            raise ConfigError(
                f"candidate {number} is empty or has characters that this vocabulary cannot write;"
                " leave it out"
            )
        found.setdefault(tuple(ids), candidate)
    return found
