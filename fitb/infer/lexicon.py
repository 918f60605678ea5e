"""A vocabulary as filling sees it: which pieces begin a word, which go on, which are no words."""

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

_LETTER = "x"  # stands for any
_LONGEST_WORD = 100  # characters; WordPiece knows no longer one either
_UNKNOWN = "\0"  # no text holds it
_UNUSED = re.compile(r"\[unused\d+\]")  # BERT's places for words to come


@dataclass(frozen=True, eq=False)
class Lexicon:
    """What filling needs of a tokenizer, laid out by token id.

    Args:
        pieces: as the tokenizer writes them.
        continues: (V,) bool, true where a piece continues a word.
        has_letter: (V,) bool, true where a piece has a letter, a mark (the vowel signs of many
            scripts) or a digit.
        is_text: (V,) bool, false for special and unused tokens.
        lowercases: whether the tokenizer takes the case away.
        cls, sep, mask, unk: ids.
    """

    pieces: tuple[str, ...]
    continues: NDArray[np.bool_]
    has_letter: NDArray[np.bool_]
    is_text: NDArray[np.bool_]
    lowercases: bool
    cls: int
    sep: int
    mask: int
    unk: int
    _tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, in which [SEP] and the like are text as all else is."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_continued(self, text: str) -> list[int]:
        """Return the ids of a text that continues a word: its first piece begins with '##'.

        [UNK] where the vocabulary has no such pieces, or the word is too long for it.
        """
        normal = self.normalise(text)
        head = self._words(_LETTER + normal)[0][len(_LETTER) :]
        ids = [token.id for token in self._inner.tokenize(head)] if head else []
        return ids + self.encode(normal[len(head) :])

    def _words(self, normal: str) -> list[str]:
        """Return what the tokenizer takes for single words of a normalised text."""
        cut = self._tokenizer.pre_tokenizer
        return [word for word, _ in cut.pre_tokenize_str(normal)] if cut else normal.split()

    def words(self, text: str) -> list[str]:
        """Return the single words of a text, normalised."""
        return self._words(self.normalise(text))

    def normalise(self, text: str) -> str:
        """Return a text as the tokenizer normalises it: lowercase, without accents, if it does."""
        return _normalised(self._tokenizer, text)

    def continues_word(self, text: str, begin: int) -> bool:
        """Whether what stands at a place of a text goes on with a word.

        A letter or digit stands before it, and the tokenizer would not part the two.
        """
        before = text[max(0, begin - _LONGEST_WORD) : begin]
        letters = before.rstrip("".join(char for char in before if category(char)[0] == "M"))
        base = letters[-1:] or before[-1:]
        if not base or category(base)[0] not in "LNM":
            return False
        return self.words(before + _LETTER)[-1] != _LETTER

    @cached_property
    def parted(self) -> NDArray[np.bool_]:
        """(V,) bool, true where a piece begins a word even if a letter touches it on its left."""
        begins = self.is_text & ~self.continues & self.has_letter
        for number in np.flatnonzero(begins):
            begins[number] = self.words(_LETTER + self.pieces[number])[0] == _LETTER
        return begins

    @cached_property
    def _inner(self) -> models.WordPiece:
        """Cuts the rest of a word into the pieces that continue one, here without their '##'."""
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
    """Lay a fast tokenizer's vocabulary out; once for each tokenizer object."""
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
        lowercases=_normalised(own, "A") == "a",
        cls=tokenizer.cls_token_id,
        sep=tokenizer.sep_token_id,
        mask=tokenizer.mask_token_id,
        unk=tokenizer.unk_token_id,
        _tokenizer=own,
    )


def _normalised(tokenizer: Tokenizer, text: str) -> str:
    normalizer = tokenizer.normalizer
    return str(normalizer.normalize_str(text)) if normalizer else text
