"""Regular expressions matched in linear time, against whole texts and against prefixes.

llguidance uses derivatives with lazily built states: no unrolling, no backtracking, a bounded cost
per step. `regex` and `re` need seconds and gigabytes to compile `((a{99}){99}){99}`, and longer to
match `(x+x+)+y`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from llguidance import LLMatcher, LLTokenizer

from fitb.base.errors import ConfigError

_MAX_CHARS = 2000  # the time to compile is proportional to it
# Escapes and character classes.
_LITERAL = re.compile(r"\\[pP]\{\^?\w+\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_POSSESSIVE = re.compile(r"[*+?}]\+")
_SYNTAX = (
    "use the syntax of Rust's regex crate, without look-around, \\b, backreferences, atomic groups"
    " and possessive quantifiers; the whole answer must match"
)


class Pattern:
    """A compiled regular expression that must match a whole text.

    Args:
        pattern: regular expression in the syntax of Rust's regex crate, without \\b.
        ignore_case: whether matching ignores case.
    Raises: ConfigError if it is invalid, unsupported or too large.
    """

    def __init__(self, pattern: str, ignore_case: bool) -> None:
        if len(pattern) > _MAX_CHARS:
            raise ConfigError(f"the regex has {len(pattern):,} characters; at most {_MAX_CHARS:,}")
        if _POSSESSIVE.search(_LITERAL.sub("x", pattern)):  # Rust's would read `a++` as `(a+)+`
            raise ConfigError(f"the regex has a possessive quantifier; {_SYNTAX}")
        grammar = LLMatcher.grammar_from_regex(f"(?i){pattern}" if ignore_case else pattern)
        self._matcher = LLMatcher(_tokenizer(), grammar, log_level=0)
        self._check("does not compile")

    def matches(self, text: str) -> bool:
        """Return whether the whole text matches."""
        return self._takes([*text.encode(), _tokenizer().eos_token])

    def begins(self, text: str) -> bool:
        """Return whether the text is a prefix of some match."""
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


@lru_cache(maxsize=1)
def _tokenizer() -> LLTokenizer:
    """llguidance's vocabulary of the 256 bytes and a token for the end."""
    return LLTokenizer("byte", slices=[])
