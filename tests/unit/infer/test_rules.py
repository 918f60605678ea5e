"""Rules against what they say, written plainly."""

import itertools
import random

import pytest

from fitb.infer.lexicon import lexicon_of
from fitb.infer.request import Constraint
from fitb.infer.rules import OPEN, NotBanned, OneOf, Reader, rules_of
from tests.unit.infer.conftest import tiny_tokenizer

LEXICON = lexicon_of(tiny_tokenizer("a", "b", "c", "##d", "##e", "."))


def test_one_of_allows_the_tokens_of_the_answers_that_agree_with_what_stands():
    draw = random.Random(4)
    answers = tuple({tuple(draw.choices(range(5, 9), k=3)) for _ in range(20)})
    rule = OneOf(LEXICON, answers)
    for pieces in itertools.product([OPEN, 5, 6, 10], repeat=3):
        for at in range(3):
            allowed = {
                answer[at]
                for answer in answers
                if all(
                    place == at or piece in (OPEN, answer[place])
                    for place, piece in enumerate(pieces)
                )
            }
            assert set(rule.mask(pieces, at).nonzero()[0].tolist()) == allowed


def test_banned_words_are_judged_once_nothing_is_open():
    rule = NotBanned(LEXICON, frozenset({"ad", "b"}))
    a, b, d = (LEXICON.pieces.index(piece) for piece in ("a", "b", "##d"))
    assert rule.test([OPEN, OPEN], 0) is None
    assert not rule.test([a, OPEN], 1)(d)
    assert rule.test([a, OPEN], 1)(a)
    assert not rule.test([OPEN, a], 0)(b)  # "b a" holds it as a word


@pytest.mark.parametrize("prefix", ["B", "bed", "b e"])
def test_a_prefix_is_one_while_either_text_begins_with_the_other(prefix):
    (_, rule) = rules_of(Reader(LEXICON), "span", Constraint(prefix=prefix), False, [])
    prefix = prefix.lower()
    for token in range(5, 11):
        text = LEXICON.pieces[token].removeprefix("##")
        assert rule.test([OPEN, OPEN], 0)(token) == (
            text.startswith(prefix) or prefix.startswith(text)
        )
        assert rule.test([OPEN], 0)(token) == text.startswith(prefix)


def test_what_constraints_share_is_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(
        "fitb.infer.rules.Pattern", lambda regex, ignore_case: read.append(regex) or regex
    )
    reader = Reader(LEXICON)
    for _ in range(3):
        rules_of(reader, "span", Constraint(regex="a|b", banned=("a",)), False, [])
        assert reader.candidates(("a", "b"), False) is reader.candidates(("a", "b"), False)
    assert read == ["a|b"]


def test_a_long_word_is_cut_into_the_longest_pieces_that_fit():
    lexicon = lexicon_of(tiny_tokenizer("a", "##a", "##aa", "##ab", "##b"))
    text = "aaab" * 25
    ids = lexicon.encode_continued(text)
    pieces = [lexicon.pieces[number].removeprefix("##") for number in ids]
    assert "".join(pieces) == text and set(pieces) == {"aa", "ab"}
    assert lexicon.encode_continued("aac") is None
    assert lexicon.encode_continued("a" * 101) is None  # as `encode`, which makes it [UNK]
    assert lexicon.encode("a" * 100) != lexicon.encode("a" * 101) == [lexicon.unk]
