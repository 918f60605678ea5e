"""Categories of words, by rules on the text around them.

Two families. By subwords: every word is `single_piece` or `multi_piece`. By text, where the text is
known: at most one of `url`, `identifier`, `number`, `name`, the first that holds. A word here is
what the tokenizer calls one; BERT's cuts at every punctuation mark, so `my_name` is three words,
and each of them, the underscore too, belongs to the identifier that it lies in.
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
_AROUND = 1000  # characters on each side of a word that are looked at
_SENTENCE_END = ".!?:;\u2026"


def category(text: str, begin: int, end: int) -> str | None:
    """Return the category by text of the word text[begin:end], None for any other word.

    The run of a word is what stands around it between two spaces, 1,000 characters on each side at
    most: the time that a text takes is linear in its length, in scripts without spaces too.

    - url: it lies in a part of its run that begins with SCHEME:// or www.
    - identifier: it lies in a name of a programming language, which may be dotted, that has an
      underscore beside a letter (snake_case, _private), at least two dotted parts of two characters
      or more each (os.path; not e.g), or a capital inside (camelCase, BertModel, HTTPServer;
      so McDonald and iPhone count too).
    - number: it lies in digits, with . , : / between them, a sign, an exponent, a per cent sign.
    - name: letters only, at least two, the first a capital, and not the first word of a sentence:
      something other than . ! ? : ; comes before it, opening quotes and brackets apart. The normal
      form of a text has no line ends, so a heading or an item without a full stop before it gives
      names that are none. Without capitals in the text there are no names and no camelCase.
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
    """Tell whether the word behind a text is, or may be, the first of a sentence."""
    before = before.rstrip(_OPENING)
    return not before or before[-1] in _SENTENCE_END
