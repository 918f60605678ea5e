"""Upper limits of one request to the server: sizes, numbers and work."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fitb.config.checks import check_range


@dataclass(frozen=True)
class Limits:
    """Upper limits of one request.

    Args:
        body_bytes: bytes of the body.
        texts: texts per request.
        chars: characters of a text, and of all its candidates, prefixes and banned words together.
        blanks: blanks per text.
        beam: beam width.
        max_pieces: subwords of a blank of unknown length.
        top_k: fillings returned per text.
        candidates: candidates per text over all its constraints; the same limit holds for banned
            words.
        regex_chars: characters of a regular expression.
        text_tokens: tokens through the model per text, all forward passes of the search together.
        answer_chars: characters of all sentences of a response together.
    """

    body_bytes: int = 1_000_000
    texts: int = 64
    chars: int = 20_000
    blanks: int = 16
    beam: int = 16
    max_pieces: int = 8
    top_k: int = 50
    candidates: int = 1000
    regex_chars: int = 200
    text_tokens: int = 262_144
    answer_chars: int = 1_000_000

    def __post_init__(self) -> None:
        check_range("limits.", self, *(key.name for key in fields(self)), low=1)
