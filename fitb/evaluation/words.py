"""Categories of masked words: rebuild the text around them, then apply the rules.

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

_Place = tuple[str, int, int]  # a text, and where in it a word begins and ends


@dataclass(frozen=True)
class Categoriser:
    """Categorises the words of rows by their text.

    Args:
        shards: the split.
        pieces: subwords of the vocabulary, by id.
        breaks: ids that end a text: [CLS], [SEP], [PAD].
        originals: text of documents by number; others are rebuilt from subwords.
        missing: categories that cannot be told here, each with the reason.
        found: how many of how many documents' texts were read again.
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
        """Look at what the shards tell; read original texts where the tokenizer lowers capitals.

        Args:
            rows: that will be asked for.
            tokenizer: a fast one, of the shards.
            originals: whether original texts may be read.
        """
        pieces, breaks, lowers = _of_tokenizer(tokenizer, vocabulary)
        try:
            shards.read_offsets(rows[:1])
        except DataError:
            reason = f"the {shards.split} split has no offsets, so no text; validation has"
            missing = dict.fromkeys(BY_TEXT, reason)
            return cls(shards, pieces, breaks, {}, missing, (0, 0))
        if not lowers:
            return cls(shards, pieces, breaks, {}, {}, (0, 0))
        read = SourceTexts({}, 0, "the input is not to be read again (originals=false)")
        if originals:
            read = read_source_texts(shards, rows, sep_id=breaks[1], pad_id=breaks[2])
        missing = {}
        if not read.texts:
            why = f"the tokenizer lowers capitals, and {read.reason}"
            missing["name"] = f"{why}; nor is camelCase among the identifiers"
        found = (len(read.texts), read.wanted)
        return cls(shards, pieces, breaks, read.texts, missing, found)

    def groups(
        self,
        rows: NDArray[np.int64],
        input_ids: NDArray[np.int64],
        words: NDArray[np.int64],
        masked: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Categorise the masked words: (B, L, G) bool, by word number.

        Args:
            rows: (B,) int64, numbers in the split.
            input_ids: (B, L) int64, as in the shards.
            words: (B, L) int64, of word_numbers.
            masked: (B, L) bool, by word number: whether any of its tokens is masked.
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
        """Yield where each wanted word of row i stands: in its document, or in its row."""
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
    """Write a row's text from its pieces, with a space where its offsets leave a gap.

    Args:
        pieces: L of them; is_text, words, begin, end: (L,), of the same tokens.
    Returns: the text, where each token begins in it, and where it ends. Texts of a row are set
        apart by a full stop, so that what follows it begins a sentence.
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


def _of_tokenizer(
    fast: Any, vocabulary: Vocabulary
) -> tuple[list[str], tuple[int, int, int], bool]:
    """Return pieces by id, the ids of [CLS], [SEP] and [PAD], and whether capitals are lowered."""
    pieces = fast.convert_ids_to_tokens(list(range(vocabulary.size)))
    normalizer = fast.backend_tokenizer.normalizer
    lowers = normalizer is not None and normalizer.normalize_str("A") != "A"
    ids = (fast.cls_token_id, fast.sep_token_id, fast.pad_token_id)
    return [str(piece) for piece in pieces], ids, lowers
