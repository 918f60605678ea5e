"""Regular expressions in linear time, on whole texts and on their beginnings.

llguidance matches by derivatives of the expression, states made as they are needed: nothing is
unrolled, nothing backtracks, and what it may spend on a step is bounded. `regex` and `re` take
seconds and gigabytes to compile `((a{99}){99}){99}`, and longer to match `(x+x+)+y`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from fitb.base.errors import ConfigError

_END = 256  # behind the 256 bytes
_MAX_CHARS = 2000  # compiling takes time in proportion
# Escapes and classes.
_LITERAL = re.compile(r"\\[pP]\{\^?\w+\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_POSSESSIVE = re.compile(r"[*+?}]\+")
_SYNTAX = (
    "take the syntax of Rust's regex crate: no look-around, \\b, backreferences, atomic groups or"
    " possessive repeats; the answer is matched as a whole"
)


class Pattern:
    """A compiled regular expression, which texts match as a whole.

    Args:
        pattern: in the syntax of Rust's regex crate, without \\b.
        ignore_case: whether case does not count.
    Raises: ConfigError where it is none, or too large.
    """

    def __init__(self, pattern: str, ignore_case: bool) -> None:
        if len(pattern) > _MAX_CHARS:
            raise ConfigError(f"the regex has {len(pattern):,} characters; at most {_MAX_CHARS:,}")
        if _POSSESSIVE.search(_LITERAL.sub("x", pattern)):  # Rust's would read `a++` as `(a+)+`
            raise ConfigError(f"the regex has a possessive repeat; {_SYNTAX}")
        grammar = LLMatcher.grammar_from_regex(f"(?i){pattern}" if ignore_case else pattern)
        self._matcher = LLMatcher(_tokenizer(), grammar, log_level=0)
        self._check("does not compile")

    def matches(self, text: str) -> bool:
        """Say whether the whole text matches."""
        return self._takes([*text.encode(), _END])

    def begins(self, text: str) -> bool:
        """Say whether a longer text, or this one, could match."""
        return self._takes(list(text.encode()))

    def _takes(self, symbols: list[int]) -> bool:
        taken = self._matcher.validate_tokens(symbols)
        if taken < len(symbols) and self._matcher.is_error():
            self._check("is too complex")
        return bool(taken == len(symbols))

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            told = self._matcher.get_error()
            found = re.search(r"^error: (.+)$", told, re.MULTILINE)  # the rest repeats the pattern
            reason = found[1] if found else "look-around" if "lookaround" in told else "too large"
            raise ConfigError(f"the regex {what} ({reason}); {_SYNTAX}")


class _Bytes:
    """A vocabulary of all bytes, as llguidance wants one described."""

    eos_token_id = _END
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(_END)), b"<end>")
    special_token_ids = (_END,)

    def __call__(self, text: Iterable[int]) -> list[int]:
        return list(text)


@lru_cache(maxsize=1)
def _tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])
