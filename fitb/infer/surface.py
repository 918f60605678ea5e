"""Insertion of answers into the text: case, spacing and character offsets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

_OPENING = "\"'\u201c\u2018\u00ab([{\u00bf\u00a1"
_CLOSING = "\"'\u201d\u2019\u00bb)]}"
_ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "vs.", "cf.", "approx.", "no.", "fig.")
_WORD = re.compile(r"[^\W\d_]{2,}")
_WORD_ENDS = re.compile(r"\s|$|[,;:!?'\u2019\u2026\u2013\u2014-]|\.(?:\s|$)")

Case = Literal["capitals", "first", "as it is"]


def cases(text: str, places: Sequence[tuple[int, int]]) -> tuple[Case, ...]:
    """Return the case of a lowercase answer in each blank.

    Capitals if all other words are in capitals; a first capital at the start of a sentence, unless
    the blank is part of a name (`os` in `___.join`); else unchanged.

    Args:
        text: text with blanks.
        places: begin and end of each blank in characters, in order.
    """
    edges = [0, *(edge for place in places for edge in place), len(text)]
    between = (text[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True))
    words = [word for part in between for word in _WORD.findall(part)]
    shouted = len(words) >= 2 and all(map(str.isupper, words))

    def case(begin: int, end: int) -> Case:
        if shouted:
            return "capitals"
        plain = words and _WORD_ENDS.match(text, end)
        return "first" if plain and _starts_sentence(text[:begin]) else "as it is"

    return tuple(case(*place) for place in places)


def in_case(answer: str, case: Case) -> str:
    """Return an answer in the given case."""
    if case == "capitals":
        return answer.upper()
    if case == "first" and answer[:1].isalpha():
        return answer[0].upper() + answer[1:]
    return answer


def _starts_sentence(before: str) -> bool:
    """Whether a sentence starts after this text."""
    kept = before.rstrip(_OPENING)
    if not kept.strip():
        return True
    if not kept[-1].isspace():
        return False
    spaces = kept[len(kept.rstrip()) :]
    if spaces.count("\n") > 1:  # a paragraph
        return True
    kept = kept.rstrip().rstrip(_CLOSING)
    return kept.endswith((".", "!", "?", "\u2026")) and not kept.lower().endswith(_ABBREVIATIONS)


def put(
    text: str, places: Sequence[tuple[int, int]], answers: Sequence[tuple[str, bool]]
) -> tuple[str, list[tuple[int, int]]]:
    """Insert answers into a text.

    Args:
        text: text with blanks.
        places: begin and end of each blank in characters, in order.
        answers: text of each answer, and whether it continues the word before the blank, which
            removes the space between them.
    Returns: the sentence, and begin and end of each answer in it.
    """
    out, previous, found = "", 0, []
    for (begin, end), (answer, continues) in zip(places, answers, strict=True):
        out += text[previous:begin]
        out = out.rstrip() if continues else out
        found.append((len(out), len(out) + len(answer)))
        out += answer
        previous = end
    return out + text[previous:], found
