"""Texts that tokenizers tear apart come back as their writer wrote them, but for the answers."""

import pytest

from fitb.infer.fill import fill
from fitb.infer.request import Constraint, FillRequest, Search
from tests.unit.infer.conftest import random_scorer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PIECES = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *"-_./:?=&%()[]!,'\u2019@#"]
PIECES += ["\u5317", "\u4eac", "\u6211", "\u5728", "\u30ab", "\U0001f642", "name", "##name"]


@pytest.fixture(scope="module")
def spelling():
    """A scorer whose vocabulary spells every word."""
    return random_scorer(*PIECES)


CASES = [
    ("See https://example.org/___/a_b?x=1&y=%20#top", "docs"),
    ("https://___.org", "example.com"),
    ("call get_[MASK]_by_id(x)", "name"),
    ("call get[MASK]ById(x)", "Name"),
    ("self.__dict__['___']", "snake_case"),
    ("Jean-___ Sartre", "Paul"),
    ("a mother-in-___'s rock-'n'-roll", "law"),
    ("Caf\u00e9 cafe\u0301 ___ \u00c5ngstr\u00f6m", "na\u00efve"),
    ("\u6211\u5728___\u4eac", "\u5317"),
    ("\u6211\u5728[SPAN]", "\u5317\u4eac"),
    ("ok \U0001f642 ___ \U0001f468\u200d\U0001f469\u200d\U0001f467!", "fine"),
    ("the [SEP] of [CLS] is ___ [PAD]", "text"),
    ("tab\there\u00a0and\u200b___,  two  spaces\n", "there"),
    ("cafe\u0301[MASK]", "s"),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_an_answer_is_the_only_thing_that_changes(spelling, text, answer):
    request = FillRequest(text, constraints=(Constraint(candidates=(answer,)),))
    (found,) = fill(spelling, [request])
    (blank,) = found.blanks
    (filling,) = found.fillings
    (mine,) = filling.answers
    assert filling.sentence == text[: blank.begin] + answer + text[blank.end :]
    assert filling.sentence[mine.begin : mine.end] == mine.text == answer
    (own,) = fill(spelling, [FillRequest(text, Search(max_pieces=3))])  # without candidates
    assert own.fillings
    for filling in own.fillings:
        (mine,) = filling.answers
        before = text[: blank.begin]
        assert filling.sentence[: mine.begin] in (before, before.rstrip())
        assert filling.sentence[mine.end :] == text[blank.end :]
        assert filling.sentence[mine.begin : mine.end] == mine.text != ""
