"""Rules against what they say, written plainly."""

import itertools
import random

import numpy as np
import pytest

from fitb.infer.lexicon import lexicon_of
from fitb.infer.request import Constraint
from fitb.infer.rules import OPEN, ConstraintReader, OneOf, rules_of
from tests.unit.infer.conftest import TINY, tiny_tokenizer

LEXICON = lexicon_of(tiny_tokenizer(*TINY))


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


def test_what_constraints_share_is_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(
        "fitb.infer.rules.Pattern", lambda regex, ignore_case: read.append(regex) or regex
    )
    reader = ConstraintReader(LEXICON)
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
    assert lexicon.encode_continued("aac") == [lexicon.unk]
    assert lexicon.encode_continued("a" * 101) == lexicon.encode("a" * 101) == [lexicon.unk]
    assert lexicon.encode("a" * 100) != [lexicon.unk]


def test_a_vowel_sign_is_a_letter_of_its_word():
    """`___` could not give words that end in one, and a continuation ended before it."""
    lexicon = lexicon_of(tiny_tokenizer("पान", "##ी", "है", "##ि", ".", lowercase=False))
    sign = lexicon.pieces.index("##ी")
    assert lexicon.has_letter[sign]
    (rule, *_) = rules_of(ConstraintReader(lexicon), "word", Constraint(), False, [])
    assert rule.mask([lexicon.pieces.index("पान"), OPEN], 1)[sign]
    ids = lexicon.encode_continued("ी है")
    assert [lexicon.pieces[number] for number in ids] == ["##ी", "है"]


def test_a_word_behind_kana_goes_on_in_kana_or_begins_in_han():
    """Han is a word by itself whatever touches it; behind kana no blank could give it."""
    lexicon = lexicon_of(tiny_tokenizer("これ", "##は", "は", "東", "東京", "word", "."))
    (rule, *_) = rules_of(ConstraintReader(lexicon), "word", Constraint(), True, [])
    allowed = {lexicon.pieces[number] for number in np.flatnonzero(rule.mask([OPEN], 0))}
    assert allowed == {"##は", "東", "東京"}


SCRIPTS = "aÀßİ1²¼ीিाक़カナかな漢𠮷한ก็עִ،。、.,-_$+€ـ"


@pytest.mark.parametrize("before", [*SCRIPTS, "これ", "a ", "a\u00a0", "a\n", "", "x" * 300])
def test_what_goes_on_with_a_word_is_what_the_tokenizer_takes_for_one(before):
    """A table of ours called kana words of their own, and rare Han none."""
    tokenizer = tiny_tokenizer("x", "##x")
    lexicon = lexicon_of(tokenizer)
    ids = tokenizer.encode(before + "x", add_special_tokens=False)
    one_word = ids[-1] != lexicon.pieces.index("x")
    if before[-1:] in "€":  # to BERT a symbol is part of a word; to a reader it is none
        one_word = False
    assert lexicon.continues_word(before, len(before)) == one_word


@pytest.mark.parametrize("before", ["I ❤", "I ❤\ufe0f", "1\ufe0f\u20e3 €", "-\u0301"])
def test_a_blank_behind_a_symbol_begins_a_word_whatever_marks_the_symbol_bears(before):
    assert not LEXICON.continues_word(before, len(before))
