"""Categories of words, by rules on the surrounding text.

By subwords every word is `single_piece` or `multi_piece`. If the text is known, a word also has at
most one category by text: `url`, `identifier`, `number` or `name`, the first that applies. Words
are those of the tokenizer: BERT's splits at every punctuation mark, so `my_name` is three words,
each of which, the underscore included, belongs to the identifier.
"""

from __future__ import annotations

import re

BY_PIECES = ("single_piece", "multi_piece")
BY_TEXT = ("url", "identifier", "number", "name")
CATEGORIES = (*BY_PIECES, *BY_TEXT)
GROUPS = ("all", *CATEGORIES)

_URL = re.compile(r"[a-z][a-z0-9+.-]{0,30}://\S+|www\.\S+", re.IGNORECASE)
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_CAMEL = re.compile(r"[a-z0-9][A-Z]|^[A-Z]{2,}[a-z]{2}")
_NUMBER = re.compile(r"(?<!\w)[+-]?\d+(?:[.,:/]\d+)*(?:[eE][+-]?\d+)?%?(?!\w)")
_OPENING = " \"'`([{<*_\u201c\u2018\u00ab-"
_AROUND = 1000  # characters of context on each side of a word
_SENTENCE_END = ".!?:;\u2026"


def category(text: str, begin: int, end: int) -> str | None:
    """Return the category by text of the word text[begin:end], None if none applies.

    The context of a word extends to the next space, at most 1,000 characters on each side, so that
    the time is linear in the length of a text, also in scripts without spaces.

    - url: part of a string that begins with SCHEME:// or www.
    - identifier: part of a possibly dotted programming-language name with an underscore next to a
      letter (snake_case, _private), at least two dotted parts of two or more characters each
      (os.path; not e.g), or a capital inside (camelCase, BertModel, HTTPServer; also McDonald).
    - number: part of digits with . , : / between them, a sign, an exponent, a per cent sign.
    - name: two or more letters, the first a capital, not at the start of a sentence: ignoring
      opening quotes and brackets, the character before it is not one of . ! ? : ; and exists.
      Normalised text has no line ends, so words after headings can be false positives. Lowercased
      text has no names and no camelCase.
    """
    left, right = max(0, begin - _AROUND), end + _AROUND
    first = max(left, text.rfind(" ", left, begin) + 1)
    last = text.find(" ", end, right)
    run = text[first : right if last < 0 else last]
    begin_in_run, end_in_run = begin - first, end - first

    def lies_in(pattern: re.Pattern[str]) -> str | None:
        for found in pattern.finditer(run):
            if found.start() <= begin_in_run and end_in_run <= found.end():
                return found[0]
        return None

    if lies_in(_URL):
        return "url"
    dotted = lies_in(_DOTTED)
    if dotted and _is_identifier(dotted):
        return "identifier"
    if lies_in(_NUMBER):
        return "number"
    word = text[begin:end]
    before = text[left:begin]
    if len(word) > 1 and word.isalpha() and word[0].isupper() and not _begins(before):
        return "name"
    return None


def _is_identifier(name: str) -> bool:
    parts = name.split(".")
    return (
        ("_" in name and any(c.isalpha() for c in name))
        or (len(parts) > 1 and min(map(len, parts)) > 1)
        or any(_CAMEL.search(part) for part in parts)
    )


def _begins(before: str) -> bool:
    """Whether a word after this text may be the first of a sentence."""
    before = before.rstrip(_OPENING)
    return not before or before[-1] in _SENTENCE_END
