"""What kind of word is what, as a table."""

import re

import pytest

from fitb.evaluation.categories import category

# A text, and the word in it between bars.
TABLE = [
    ("see |https|://example.org/a_b now", "url"),
    ("see https://example.org/|a|_b now", "url"),
    ("(https://|example|.org)", "url"),
    ("see (|https|)://example.org", None),
    ("at www.|example|.org now", "url"),
    ("at |example|.org now", "identifier"),
    ("call my_|name| with", "identifier"),
    ("call my|_|name with", "identifier"),
    ("call |_|private with", "identifier"),
    ("the |__|init__ method", "identifier"),
    ("a |_| b", None),
    ("of os.|path|.join here", "identifier"),
    ("of os|.|path here", "identifier"),
    ("of np.arange(|num|) here", None),
    ("of np.|arange|(num) here", "identifier"),
    ("called |camelCase| here", "identifier"),
    ("called |BertModel|s here", "identifier"),
    ("called |HTTPServer| here", "identifier"),
    ("for |e|.g. this", None),
    ("the end|.| of it", None),
    ("about |42| things", "number"),
    ("about |3|.14 things", "number"),
    ("about 3|.|14 things", "number"),
    ("about 3.14e-|10| things", "number"),
    ("about -|7|% of it", "number"),
    ("pages 10-|20| here", "number"),
    ("at 12:|30| here", "number"),
    ("in |1|,000.50 units", "number"),
    ("in |42|.", "number"),
    ("the |3rd| one", None),
    ("from |utf8| text", None),
    ("in |Paris| again", "name"),
    ("in (|Paris|) again", "name"),
    ("of |NASA| here", "name"),
    ("the Anglo-|Saxon| one", "name"),
    ("|Returns| a list", None),
    ("It ends. |Returns| a list", None),
    ('He said: "|Returns| a list"', None),
    ("It ends! (|Returns| a list)", None),
    ("and |I| too", None),
    ("and |i| too", None),
    ("the |quick| fox", None),
    ("the quick|,| fox", None),
    ("of |\u00c9mile| here", "name"),
]


@pytest.mark.parametrize(("marked", "expected"), TABLE)
def test_words_are_what_the_table_says(marked, expected):
    begin, end = (found.start() for found in re.finditer(r"\|", marked))
    text = marked.replace("|", "")
    assert category(text, begin, end - 1) == expected


def test_without_capitals_there_are_no_names_and_no_camel_case():
    for marked, expected in TABLE:
        begin, end = (found.start() for found in re.finditer(r"\|", marked))
        found = category(marked.replace("|", "").lower(), begin, end - 1)
        if expected in ("name", None):
            assert found is None, marked
        elif not re.search("[a-z][A-Z]|HTTPS", marked):
            assert found == expected, marked


def test_a_word_of_a_long_text_without_spaces_is_judged_by_what_is_around_it():
    """The whole text was gone through for each of its words."""
    part = "\u6587\u5b57Tokyo\u306e\u3002https://example.org/a\u300112.5%" * 3
    text = part * 5000
    for begin in range(0, len(text), len(text) // 1000):
        near = slice(max(0, begin - 1000), begin + 1001)
        inside = begin - near.start
        assert category(text, begin, begin + 1) == category(text[near], inside, inside + 1)
    assert category("https://" + "a." * 400 + "|", 700, 701) == "url"
