"""The vocabulary as arrays by token id: word starts, continuations, special tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING
from unicodedata import category

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from fitb.corpus.wordpiece import bare, continues

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LETTER = "x"  # any letter
_LONGEST_WORD = 100  # characters; WordPiece gives [UNK] for longer words
_UNKNOWN = "\0"  # occurs in no text
_UNUSED = re.compile(r"\[unused\d+\]")  # BERT's reserved entries


@dataclass(frozen=True, eq=False)
class Lexicon:
    """A tokenizer's vocabulary by token id.

    Args:
        pieces: V subwords as the tokenizer writes them, '##' included.
        continues: (V,) bool, whether the subword continues a word.
        has_letter: (V,) bool, whether the subword has a letter, a mark (vowel signs of many
            scripts) or a digit.
        is_text: (V,) bool, false for special and unused tokens.
        cls, sep, mask, unk: token ids of [CLS], [SEP], [MASK] and [UNK].
        _tokenizer: a copy of the fast tokenizer that reads special tokens as plain text.
    """

    pieces: tuple[str, ...]
    continues: NDArray[np.bool_]
    has_letter: NDArray[np.bool_]
    is_text: NDArray[np.bool_]
    cls: int
    sep: int
    mask: int
    unk: int
    _tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; a written [SEP] is plain text, not the special token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_continued(self, text: str) -> list[int]:
        """Return the token ids of a text that continues a word: the first subword has a '##'.

        Gives [UNK] if the vocabulary has no such subwords, or the word is too long.
        """
        normal = self.normalise(text)
        head = self._words(_LETTER + normal)[0][len(_LETTER) :]
        ids = [token.id for token in self._inner.tokenize(head)] if head else []
        return ids + self.encode(normal[len(head) :])

    def _words(self, normal: str) -> list[str]:
        """Split a normalised text into words with the tokenizer's pre-tokenizer."""
        cut = self._tokenizer.pre_tokenizer
        return [word for word, _ in cut.pre_tokenize_str(normal)] if cut else normal.split()

    def words(self, text: str) -> list[str]:
        """Return the normalised words of a text."""
        return self._words(self.normalise(text))

    def normalise(self, text: str) -> str:
        """Normalise a text as the tokenizer does, for instance to lower case without accents."""
        normalizer = self._tokenizer.normalizer
        return str(normalizer.normalize_str(text)) if normalizer else text

    @cached_property
    def lowercases(self) -> bool:
        """Whether the tokenizer lowercases."""
        return self.normalise("A") == "a"

    def continues_word(self, text: str, begin: int) -> bool:
        """Whether text inserted at an offset would continue the word before it.

        True if a letter or digit precedes the offset and the tokenizer would not split there.

        Args:
            text: the text.
            begin: offset in characters.
        """
        before = text[max(0, begin - _LONGEST_WORD) : begin]
        letters = before.rstrip("".join(char for char in before if category(char)[0] == "M"))
        base = letters[-1:] or before[-1:]
        if not base or category(base)[0] not in "LNM":
            return False
        return self.words(before + _LETTER)[-1] != _LETTER

    @cached_property
    def parted(self) -> NDArray[np.bool_]:
        """(V,) bool, whether a subword begins a word even right after a letter, as Han does."""
        begins = self.is_text & ~self.continues & self.has_letter
        for number in np.flatnonzero(begins):
            begins[number] = self.words(_LETTER + self.pieces[number])[0] == _LETTER
        return begins

    @cached_property
    def _inner(self) -> models.WordPiece:
        """A WordPiece model of the continuing subwords, without their '##'."""
        inner = {
            bare(self.pieces[number]): number for number in np.flatnonzero(self.continues).tolist()
        }
        return models.WordPiece(
            inner | {_UNKNOWN: self.unk},
            unk_token=_UNKNOWN,
            max_input_chars_per_word=_LONGEST_WORD,
            continuing_subword_prefix="",
        )


@lru_cache(maxsize=4)
def lexicon_of(tokenizer: PreTrainedTokenizerBase) -> Lexicon:
    """Return the lexicon of a fast tokenizer, cached per tokenizer object."""
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True
    found = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    pieces = tuple("" if piece is None else str(piece) for piece in found)  # ids may have holes
    special = set(tokenizer.all_special_ids)
    return Lexicon(
        pieces=pieces,
        continues=np.array([continues(piece) for piece in pieces]),
        has_letter=np.array([any(category(char)[0] in "LMN" for char in p) for p in pieces]),
        is_text=np.array(
            [
                bool(piece) and number not in special and not _UNUSED.fullmatch(piece)
                for number, piece in enumerate(pieces)
            ]
        ),
        cls=tokenizer.cls_token_id,
        sep=tokenizer.sep_token_id,
        mask=tokenizer.mask_token_id,
        unk=tokenizer.unk_token_id,
        _tokenizer=own,
    )
