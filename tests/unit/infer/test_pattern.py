"""Regular expressions: the same as Python's where both take them, and none that takes for ever."""

import itertools
import re

import pytest

from fitb.base.errors import ConfigError
from fitb.infer.fill import fill
from fitb.infer.pattern import Pattern
from fitb.infer.request import Constraint, FillRequest, Search

ORDINARY = [
    "a", "ab?", "a*b", "(a|b)c", "[ab]{2,3}", "[^a]+", "a|bc|", "(ab)+c?", ".*b", "a.c", "^ab$",
    "(?:a|ab)(?:c|bc)", "a{0,2}b{1}", r"\w\W?\w", "a+?b", "((a)|(b))+", "[a-c]+b", r"\S+", "(?i)AB",
]  # fmt: skip
ALPHABET = "abc "
TEXTS = ["".join(text) for size in range(5) for text in itertools.product(ALPHABET, repeat=size)]


@pytest.mark.parametrize("regex", ORDINARY)
def test_an_ordinary_regex_matches_what_python_matches_and_begins_what_goes_on_to_that(regex):
    """No pattern of these needs more than three further characters from where it stands."""
    pattern = Pattern(regex, ignore_case=False)
    matching = [text for text in TEXTS if re.fullmatch(regex, text)]
    assert [text for text in TEXTS if pattern.matches(text)] == matching
    longer = {text[:size] for text in matching for size in range(len(text) + 1)}
    for text in (text for text in TEXTS if len(text) <= 1):
        assert pattern.begins(text) == (text in longer), text


def test_case_does_not_count_where_it_is_told_so():
    for text in ("caf\u00e9", "CAF\u00c9", "Caf\u00e9"):
        assert Pattern("caf\u00e9", ignore_case=True).matches(text)
    assert not Pattern("caf\u00e9", ignore_case=False).matches("CAF\u00c9")


def test_classes_know_unicode():
    assert Pattern(r"\p{Han}+", ignore_case=True).matches("\u5317\u4eac")
    assert Pattern(r"\w+", ignore_case=True).matches("\u00e9\u5317")
    assert not Pattern(r"\d+", ignore_case=True).matches("a")


@pytest.mark.parametrize("character", ["/", '"', "\n", "\\\\", "\x00", "\U0001f642", "'", "#"])
def test_no_character_of_a_regex_is_taken_for_another_language(character):
    pattern = Pattern(f"a{character}b", ignore_case=False)
    assert pattern.matches(f"a{character[-1]}b") and not pattern.matches("ab")


@pytest.mark.parametrize(
    "regex",
    [r"(a)\1", "(?=a)b", "(?!a)b", "(?<=a)b", r"\ba", "(?>a)b", "(a)(?R)?", "(?:ab){e<=1}", "a++",
     "a{1,2}+", "a*+b", r"\w++", "(", "[", "a{2,1}", r"\p{Nope}", "*", "(" * 300 + ")" * 300,
     "a" * 3000],
)  # fmt: skip
def test_what_is_not_supported_is_refused_without_being_repeated(regex):
    with pytest.raises(ConfigError) as refused:
        Pattern(regex, ignore_case=True)
    assert "regex" in str(refused.value) and "\n" not in str(refused.value)
    assert len(regex) < 4 or regex not in str(refused.value)


@pytest.mark.parametrize("regex", [r"\++", r"[+*]+", r"[*+?]\+", r"a\?+", "[]a+]+", r"(\w+\w+)+!"])
def test_a_plus_that_is_no_possessive_repeat_is_not_refused(regex):
    Pattern(regex, ignore_case=True)


BOMBS = [
    "(?:(?:(?:a{9999}){9999}){9999}){9999}", "(?:(?:ab?){999}){999}", "((a{99}){99}){99}",
    "(a|b)*a(a|b){200}", "(x+x+)+y", r"\p{L}{0,5000}", r"(\w+\w+)+(\w+\w+)+!", "(.{1,40}){1,40}",
    r"(\w?\d?){99}\W", "(a?){300}a{300}", r"(\w|\d|\s|.){9999}{9999}", "(x*y*)*" * 100,
]  # fmt: skip


@pytest.mark.parametrize("regex", BOMBS)
def test_no_regex_takes_for_ever(regex):
    """Python's own would take gigabytes to compile some of them, and years to match others."""
    pattern = Pattern(regex, ignore_case=True)
    for text in ("x" * 200, "ab" * 300, "a" * 999, "xy" * 50 + "!", "a b c d " * 20):
        pattern.matches(text)
        pattern.begins(text)


def test_a_bomb_is_only_an_unmet_constraint(tiny):
    request = FillRequest("a [SPAN]", Search(max_pieces=3), (Constraint(regex=BOMBS[0]),))
    assert fill(tiny, [request])[0].fillings == ()
