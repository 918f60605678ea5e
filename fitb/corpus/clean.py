"""Text normalisation, and the rules that drop a document.

Normal form: NFC or NFKC, no control characters, single spaces. Character offsets in the shards
refer to it. The libraries of optional steps are imported only if the step is on.
"""

from __future__ import annotations

import importlib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from fitb.base.errors import ConfigError, nearest

STEPS = ("html", "ftfy", "control", "unicode", "whitespace")

# Control, format, surrogate and private-use characters, which BERT's own normaliser drops too.
_DROPPED = {"Cc", "Cf", "Cs", "Co"}
_JOINERS = "\u200c\u200d"  # ZWNJ and ZWJ
_ASCII = {code: " " if chr(code).isspace() else None for code in (*range(32), 127)}
_ODD_SPACE = re.compile(r"[^\S ]")
_PAGE = re.compile(r"<html\b", re.IGNORECASE)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--|<!doctype\b", re.IGNORECASE)


@dataclass(frozen=True)
class CleanConfig:
    """Cleaning steps, and rules that drop documents.

    Args:
        unicode: Unicode normal form; NFKC also folds ligatures, wide letters and superscripts.
        ftfy: repair text decoded with the wrong encoding, and HTML entities in plain text.
        html: documents are HTML: keep their main text, without navigation and other boilerplate.
        min_chars: drop documents with fewer characters in normal form.
        max_chars: drop documents with more characters in normal form; null keeps them.
        language: keep only documents in this language, an ISO 639-1 code such as en.
        language_threshold: smallest probability of that language.
        joiners: keep the zero-width joiner and non-joiner, which are part of the spelling in
            Persian and Indic scripts; BERT's own tokenizers drop them, so it needs --tokenizer.
        keep: regular expression; keep only documents whose normal form contains a match.
        drop: regular expression; drop documents whose normal form contains a match.
    Raises: ConfigError for a value out of range or an invalid regular expression.
    """

    unicode: Literal["NFC", "NFKC"] = "NFC"
    ftfy: bool = False
    html: bool = False
    min_chars: int = 1
    max_chars: int | None = None
    language: str | None = None
    language_threshold: float = 0.5
    joiners: bool = False
    keep: str | None = None
    drop: str | None = None

    def __post_init__(self) -> None:
        if self.min_chars < 1:
            raise ConfigError(f"min_chars is {self.min_chars}, expected 1 or more characters")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ConfigError(
                f"max_chars is {self.max_chars}, expected min_chars={self.min_chars} or more"
            )
        if not 0 < self.language_threshold <= 1:
            raise ConfigError(
                f"language_threshold is {self.language_threshold}, expected a probability above 0"
                " and up to 1; the default is 0.5"
            )
        for name in ("keep", "drop"):
            pattern = getattr(self, name)
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ConfigError(
                    f"{name} is {pattern!r}, not a valid regular expression: {error}; correct it"
                ) from error


@dataclass(frozen=True)
class Cleaned:
    """A document after cleaning.

    Args:
        text: the normal form.
        dropped: rule that drops it: html_empty, empty, too_short, too_long, language, keep or drop;
            None if it is kept.
    """

    text: str
    dropped: str | None


class _Visible(dict[int, str | None]):
    """Lazy table for str.translate: white space to a space, control characters to None."""

    def __init__(self, kept: str) -> None:
        self._kept = kept

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        dropped = unicodedata.category(character) in _DROPPED and character not in self._kept
        value = " " if character.isspace() else None if dropped else character
        self[code] = value
        return value


class Cleaner:
    """Cleaner of documents; each process has its own.

    Args:
        config: the configuration, whose libraries are loaded and tried here.
    Attributes:
        changed: number of documents that each of STEPS changed, dropped ones included.
    Raises: ConfigError if a library is missing or does not know the language.
    """

    def __init__(self, config: CleanConfig) -> None:
        self.config = config
        self.changed: Counter[str] = Counter()
        self._main_text = _html_reader() if config.html else None
        self._mend = _mender() if config.ftfy else None
        self._language_of = _language_reader(config.language) if config.language else None
        self._visible = _Visible(_JOINERS if config.joiners else "")
        self._keep = re.compile(config.keep) if config.keep is not None else None
        self._drop = re.compile(config.drop) if config.drop is not None else None

    def clean(self, text: str) -> Cleaned:
        """Return the normal form of a text and the rule that drops it, if any."""
        if self._main_text and _TAG.search(text):
            text = self._main_text(text)
            self.changed["html"] += 1
            if not text.strip():
                return Cleaned("", "html_empty")
        if self._mend:
            mended = self._mend(text)
            if mended != text:
                self.changed["ftfy"] += 1
            text = mended
        normal = self._normalized(text)
        return Cleaned(normal, self._rule(normal))

    def _normalized(self, text: str) -> str:
        """Return the normal form (an idempotent operation) and count the steps that change it."""
        # The NFKC of a character never contains control characters, so they are removed first; it
        # may contain spaces, so they are merged last.
        visible = text.translate(_ASCII if text.isascii() else self._visible)
        formed = unicodedata.normalize(self.config.unicode, visible)
        normal = " ".join(formed.split())
        if normal != text:
            is_shorter = len(visible) < len(text)
            if is_shorter:
                self.changed["control"] += 1
            if formed != visible:
                self.changed["unicode"] += 1
            # If no character was removed, a difference is white space that became a space.
            odd = _ODD_SPACE.search(text) is not None if is_shorter else visible != text
            if odd or normal != formed:
                self.changed["whitespace"] += 1
        return normal

    def _rule(self, text: str) -> str | None:
        config = self.config
        if not text:
            return "empty"
        if len(text) < config.min_chars:
            return "too_short"
        if config.max_chars is not None and len(text) > config.max_chars:
            return "too_long"
        if self._language_of:
            language, probability = self._language_of(text)
            if language != config.language or probability < config.language_threshold:
                return "language"
        if self._keep and not self._keep.search(text):
            return "keep"
        if self._drop and self._drop.search(text):
            return "drop"
        return None


def _library(name: str, option: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{option} needs {name.split('.')[0]}, which cannot be imported ({reason});"
            " pip install 'fitb[clean]'"
        ) from error


def _mender() -> Callable[[str], str]:
    """Return ftfy's repair of wrong encodings, without its changes of typography."""
    ftfy = _library("ftfy", "ftfy")
    config = ftfy.TextFixerConfig(
        normalization=None,
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        fix_line_breaks=False,
        remove_control_chars=False,
    )

    def mend(text: str) -> str:
        return str(ftfy.fix_text(text, config))

    mend("")
    return mend


def _html_reader() -> Callable[[str], str]:
    """Return a function from HTML to its main text, or to all its text if none is found."""
    trafilatura = _library("trafilatura", "html")
    logging.getLogger("trafilatura").setLevel(logging.ERROR)  # it warns of every empty page

    def main_text(html: str) -> str:
        page = html.encode(errors="ignore").decode()  # lxml refuses lone surrogates
        if not _PAGE.search(page):  # trafilatura does not recognise a bare fragment
            page = f"<html><body>{page}</body></html>"
        main = trafilatura.extract(page, include_comments=False)
        return str(main or trafilatura.html2txt(page) or "")

    main_text("<p>text</p>")
    return main_text


def _language_reader(language: str) -> Callable[[str], tuple[str, float]]:
    """Return a function from a text to its language and the probability of that language."""
    langid = _library("py3langid.langid", "language")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    if language not in identifier.labels:
        raise ConfigError(
            f"language {language!r} is unknown{nearest(language, identifier.labels)};"
            f" take one of {' '.join(sorted(identifier.labels))}"
        )

    def language_of(text: str) -> tuple[str, float]:
        found, probability = identifier.classify(text)
        return str(found), float(probability)

    return language_of
