"""Which pieces may stand where in a blank: its kind, and what the user asks of its answer.

A rule sees the pieces of one blank of a known number of pieces, OPEN where nothing stands yet.
`mask` is fast and says which tokens are possible at a place; `test` looks at one token at a time,
likeliest first, and is only there where a text must be read.

Legend: V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import regex
from numpy.typing import NDArray

from fitb.errors import ConfigError
from fitb.infer import surface
from fitb.infer.lexicon import Lexicon
from fitb.infer.request import Constraint, Kind

OPEN = -1
_MAX_CANDIDATES = 10_000

Pieces = Sequence[int]


class Rule(Protocol):
    """What may stand in a blank."""

    @property
    def in_order(self) -> bool:
        """Whether its pieces must be filled from left to right."""
        ...

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        """Return which tokens may stand at a place, (V,) bool; None for all."""
        ...

    def test(self, pieces: Pieces, at: int, token: int) -> bool:
        """Say whether a token that `mask` lets through may stand there."""
        ...


@dataclass(frozen=True)
class WordOrSpan:
    """A word: one that begins as words do and then goes on. A span: any text.

    Args:
        glued: whether the blank's left neighbour is part of its first word.
    """

    lexicon: Lexicon
    kind: Kind
    glued: bool
    in_order: bool = False

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        return self._goes_on if at or self.glued else self._begins

    def test(self, pieces: Pieces, at: int, token: int) -> bool:
        return True

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
class OneOf:
    """One of these answers, each a tuple of as many tokens as the blank has pieces."""

    lexicon: Lexicon
    answers: tuple[tuple[int, ...], ...]
    in_order: bool = False

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        allowed = np.zeros(len(self.lexicon.pieces), dtype=np.bool_)
        for answer in self.answers:
            others = zip(pieces, answer, strict=True)
            if all(
                piece in (OPEN, mine) or place == at for place, (piece, mine) in enumerate(others)
            ):
                allowed[answer[at]] = True
        return allowed

    def test(self, pieces: Pieces, at: int, token: int) -> bool:
        return True


class Budget:
    """Time that a request's regular expressions may take in all: none can hold a process up."""

    def __init__(self, seconds: float = 2.0) -> None:
        self._given_s = self._left_s = seconds

    def matches(self, pattern: regex.Pattern[str], text: str, partial: bool) -> bool:
        began_s = time.monotonic()
        try:
            if self._left_s <= 0:
                raise TimeoutError
            # concurrent: other threads run meanwhile
            return bool(
                pattern.fullmatch(text, partial=partial, timeout=self._left_s, concurrent=True)
            )
        except TimeoutError:
            self._left_s = 0.0  # the timer's clock may run ahead of ours
            raise ConfigError(
                f"the regex took more than {self._given_s:g} s; give a simpler one, or candidates"
            ) from None
        finally:
            self._left_s -= time.monotonic() - began_s


@dataclass(frozen=True)
class Matches:
    """An answer whose text a regular expression matches as a whole.

    While pieces to the right are open, what stands so far must be the beginning of a match.
    """

    lexicon: Lexicon
    pattern: regex.Pattern[str]
    budget: Budget
    in_order: bool = True

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        return self.lexicon.is_text

    def test(self, pieces: Pieces, at: int, token: int) -> bool:
        filled = [*pieces[:at], token, *pieces[at + 1 :]]
        whole = OPEN not in filled
        known = filled if whole else filled[: at + 1]
        text = surface.join([self.lexicon.pieces[piece] for piece in known])
        return self.budget.matches(self.pattern, text, partial=not whole)


@dataclass(frozen=True)
class NotBanned:
    """An answer that holds none of these words, which are normalised."""

    lexicon: Lexicon
    words: frozenset[str]
    in_order: bool = False

    def mask(self, pieces: Pieces, at: int) -> NDArray[np.bool_] | None:
        return None

    def test(self, pieces: Pieces, at: int, token: int) -> bool:
        filled = [*pieces[:at], token, *pieces[at + 1 :]]
        if OPEN in filled:
            return True
        text = surface.join([self.lexicon.pieces[piece] for piece in filled]).lower()
        return text not in self.words and not self.words & set(regex.findall(r"\w+", text))


def rules_of(
    lexicon: Lexicon,
    kind: Kind,
    constraint: Constraint,
    glued: bool,
    answers: Sequence[tuple[int, ...]],
    budget: Budget,
) -> list[Rule]:
    """Return what must hold in a blank.

    Args:
        glued: whether a letter or a digit touches the blank on its left.
        answers: tokens of the constraint's candidates that are as long as the blank.
        budget: of the request.
    Raises: ConfigError where the regex is none.
    """
    rules: list[Rule] = []
    if constraint.candidates:
        rules.append(OneOf(lexicon, tuple(answers)))
    elif kind != "mask":
        rules.append(WordOrSpan(lexicon, kind, glued))
    patterns = [constraint.regex] if constraint.regex else []
    if constraint.prefix:
        patterns.append(f"(?s){regex.escape(lexicon.normalise(constraint.prefix))}.*")
    for pattern in patterns:
        rules.append(Matches(lexicon, _compiled(pattern, lexicon), budget))
    if constraint.banned:
        words = frozenset(lexicon.normalise(word).lower().strip() for word in constraint.banned)
        rules.append(NotBanned(lexicon, words))
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


def _compiled(pattern: str, lexicon: Lexicon) -> regex.Pattern[str]:
    flags = regex.IGNORECASE if lexicon.lowercases else 0
    try:
        return regex.compile(pattern, flags)
    except regex.error as error:
        raise ConfigError(f"regex does not compile: {error.msg} at position {error.pos}") from error
