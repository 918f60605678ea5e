import pytest

from fitb.corpus.wordpiece import join
from fitb.infer.blanks import find_blanks
from fitb.infer.surface import cases, in_case


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["new", "york"], "new york"),
        (["token", "##ization", "works"], "tokenization works"),
        (["##ization"], "ization"),
        (["state", "-", "of", "-", "the", "-", "art"], "state-of-the-art"),
        (["don", "'", "t"], "don't"),
        (["snake", "_", "case"], "snake_case"),
        (["camel", "##case"], "camelcase"),
        (["a", ".", "b"], "a. b"),
        (["3", ".", "14"], "3.14"),
        (["1", ",", "000"], "1,000"),
        (["yes", ",", "no", "!"], "yes, no!"),
        (["f", "(", "x", ")"], "f (x)"),
        (["http", ":", "/", "/", "a"], "http:// a".replace(" ", "")),
        (["\u4e2d", "\u6587"], "\u4e2d\u6587"),
        (["caf\u00e9", "\U0001f642"], "caf\u00e9 \U0001f642"),
        (["#", "tag"], "#tag"),
        (["##"], "##"),
    ],
)
def test_pieces_join_as_they_are_written(pieces, text):
    assert join(pieces) == text


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("___ is big.", "paris", "Paris"),
        ("It rains. ___ stays.", "she", "She"),
        ('"___ now," he said.', "go", "Go"),
        ("Really? ___, yes.", "well", "Well"),
        ("One.\n\n___ is two", "here", "Here"),
        ("a list: ___ and", "red", "red"),
        ("Colours, e.g. ___, fade.", "red", "red"),
        ("THE CAPITAL OF ___ IS", "france", "FRANCE"),
        ("___.join(words)", "os", "os"),
        ("___(x) is called", "print", "print"),
        ("___", "word", "word"),
        ("___ is 3", "42", "42"),
        ("version 2.___ is out", "beta", "beta"),
        ("I ___ it", "like", "like"),
    ],
)
def test_an_answer_without_case_is_written_as_its_place_asks(text, answer, expected):
    (blank,) = find_blanks(text)
    assert in_case(answer, *cases(text, [(blank.begin, blank.end)])) == expected


@pytest.mark.parametrize(
    "text",
    ["aa " + "\n" * 20_000 + "a. ___", "aa " + "\n \n" * 6_000 + "( ___", "aa" + "'" * 20_000],
)
def test_the_case_of_a_place_is_found_whatever_stands_before_it(text):
    """A regex that looked for a paragraph took the cube of it: three hours for 20,000 line ends."""
    assert len(cases(text, [(len(text) - 3, len(text))])) == 1


def test_blanks_are_found_where_they_are():
    text = "a [MASK] __init__ ____, x___y [SPAN][MASK] [mask]"
    found = [(text[b.begin : b.end], b.kind) for b in find_blanks(text)]
    assert found == [
        ("[MASK]", "mask"),
        ("____", "word"),
        ("___", "word"),
        ("[SPAN]", "span"),
        ("[MASK]", "mask"),
    ]
