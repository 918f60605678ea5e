"""Categories of masked words, from the source text or from text rebuilt from subwords.

Legend: B rows, L length, G groups, of categories.GROUPS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitb.base.errors import DataError
from fitb.corpus.source_text import SourceTexts, read_source_texts
from fitb.corpus.wordpiece import bare
from fitb.data.masking import Vocabulary
from fitb.evaluation.categories import BY_TEXT, GROUPS, category
from fitb.shards.documents import documents_at
from fitb.shards.shard_set import Offsets, ShardSet

_Place = tuple[str, int, int]  # a text, begin and end of a word in it


@dataclass(frozen=True)
class Categoriser:
    """Assigns categories to the words of rows.

    Args:
        shards: the split.
        pieces: subwords of the vocabulary, by token id.
        breaks: token ids of [CLS], [SEP] and [PAD].
        originals: source text of documents by number; others are rebuilt from subwords.
        missing: categories that cannot be assigned here, with the reason.
        found: number of documents whose source text was found, and of those wanted.
    """

    shards: ShardSet
    pieces: Sequence[str]
    breaks: tuple[int, int, int]
    originals: Mapping[int, str]
    missing: Mapping[str, str]
    found: tuple[int, int]

    @classmethod
    def of(
        cls,
        shards: ShardSet,
        rows: NDArray[np.int64],
        vocabulary: Vocabulary,
        tokenizer: Any,
        *,
        originals: bool = True,
    ) -> Categoriser:
        """Build a categoriser; with a lowercasing tokenizer, read the source texts again.

        Args:
            shards: the split.
            rows: (N,) int64, row numbers that will be evaluated.
            vocabulary: vocabulary of the tokenizer.
            tokenizer: fast tokenizer of the shards.
            originals: whether source texts may be read.
        """
        pieces = tokenizer.convert_ids_to_tokens(list(range(vocabulary.size)))
        breaks = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
        normalizer = tokenizer.backend_tokenizer.normalizer
        lowers = normalizer is not None and normalizer.normalize_str("A") != "A"
        try:
            shards.read_offsets(rows[:1])
        except DataError:
            reason = f"the {shards.split} split has no offsets; the validation split has"
            missing = dict.fromkeys(BY_TEXT, reason)
            return cls(shards, pieces, breaks, {}, missing, (0, 0))
        if not lowers:
            return cls(shards, pieces, breaks, {}, {}, (0, 0))
        read = SourceTexts({}, 0, "the source texts were not read (originals=false)")
        if originals:
            read = read_source_texts(shards, rows, sep_id=breaks[1], pad_id=breaks[2])
        missing = {}
        if not read.texts:
            why = f"the tokenizer lowercases, and {read.reason}"
            missing["name"] = f"{why}; camelCase is not recognised either"
        return cls(shards, pieces, breaks, read.texts, missing, (len(read.texts), read.wanted))

    def groups(
        self,
        rows: NDArray[np.int64],
        input_ids: NDArray[np.int64],
        words: NDArray[np.int64],
        masked: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Return the groups of the masked words, (B, L, G) bool by word number.

        Args:
            rows: (B,) int64, row numbers in the split.
            input_ids: (B, L) int64, unmasked token ids.
            words: (B, L) int64, word number of each position, from `word_numbers`.
            masked: (B, L) bool by word number, whether a token of the word is masked.
        """
        num_rows, length = words.shape
        index = (np.arange(num_rows)[:, None] * length + words)[words >= 0]
        sizes = np.bincount(index, minlength=num_rows * length).reshape(num_rows, length)
        groups = np.zeros((num_rows, length, len(GROUPS)), dtype=bool)
        groups[:, :, 0] = True
        groups[:, :, GROUPS.index("single_piece")] = sizes == 1
        groups[:, :, GROUPS.index("multi_piece")] = sizes > 1
        if "url" in self.missing:
            return groups
        offsets = self.shards.read_offsets(rows)
        _, sep_id, pad_id = self.breaks
        first = self.shards.document_numbers(rows)
        documents = documents_at(input_ids, first, sep_id=sep_id, pad_id=pad_id)
        for i in range(num_rows):
            wanted = np.flatnonzero(masked[i])
            places = self._places(i, input_ids[i], documents[i], words[i], wanted, offsets)
            for word, place in zip(wanted, places, strict=True):
                kind = category(*place)
                if kind:
                    groups[i, word, GROUPS.index(kind)] = True
        return groups

    def _places(
        self,
        i: int,
        input_ids: NDArray[np.int64],
        documents: NDArray[np.int64],
        words: NDArray[np.int64],
        wanted: NDArray[np.int64],
        offsets: Offsets,
    ) -> Iterator[_Place]:
        """Yield text and offsets of each wanted word of row i, in its document or in its row."""
        is_text = documents >= 0
        begin, end = offsets.offset_begin[i], offsets.offset_end[i]
        row_text: tuple[str, list[int], list[int]] | None = None
        for word in wanted:
            tokens = np.flatnonzero(words == word)
            first, last = int(tokens[0]), int(tokens[-1])
            document = self.originals.get(int(documents[first]))
            if document is not None:
                yield document, int(begin[first]), int(end[last])
                continue
            if row_text is None:
                known = [self.pieces[int(token)] for token in input_ids]
                row_text = put_together(known, is_text, words, begin, end)
            yield row_text[0], row_text[1][first], row_text[2][last]


def put_together(
    pieces: Sequence[str],
    is_text: NDArray[np.bool_],
    words: NDArray[np.int64],
    begin: NDArray[np.int32],
    end: NDArray[np.int32],
) -> tuple[str, list[int], list[int]]:
    """Rebuild the text of a row from its subwords, with a space wherever the offsets have a gap.

    Documents in a row are separated by a full stop, so that each begins a sentence.

    Args:
        pieces: L subwords.
        is_text: (L,) bool, false for special tokens.
        words: (L,) int64, word number of each position.
        begin, end: (L,) int32, offsets of each token in its document, in characters.
    Returns: the text, and begin and end of each token in it.
    """
    text, begins, ends = "", [], []
    for place, piece in enumerate(pieces):
        follows = place > 0 and bool(is_text[place] and is_text[place - 1])
        if not is_text[place]:
            text, piece = text + (" . " if text else ""), ""
        elif follows and begin[place] > end[place - 1]:
            text += " "
        if follows and words[place] == words[place - 1]:
            piece = bare(piece)
        begins.append(len(text))
        text += piece
        ends.append(len(text))
    return text, begins, ends
