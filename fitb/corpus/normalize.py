"""Text to its normal form: NFC, no control characters, single spaces.

Character offsets in the shards refer to this form.
"""

from __future__ import annotations

import unicodedata

# Control, format, surrogate and private use: invisible, and BERT's own normaliser drops them.
_DROPPED = {"Cc", "Cf", "Cs", "Co"}
_ASCII = {code: " " if chr(code).isspace() else None for code in (*range(32), 127)}


class _Visible(dict[int, str | None]):
    """Translation table that looks a character up once: space, nothing, or itself."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        dropped = unicodedata.category(character) in _DROPPED
        value = " " if character.isspace() else None if dropped else character
        self[code] = value
        return value


def normalize(text: str) -> str:
    """Return the normal form of a text; a normal form is its own normal form.

    Args:
        text: any, with any line ends.
    Returns: NFC without control characters, runs of whitespace as one space, none at the ends.
    """
    visible = text.translate(_ASCII if text.isascii() else _Visible())
    return " ".join(unicodedata.normalize("NFC", visible).split())
