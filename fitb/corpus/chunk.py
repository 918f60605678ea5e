"""Packing of tokenised documents into rows of fixed length, or windows of one document each.

`pack` makes rows `[CLS] tokens [SEP] tokens [SEP] ...`. A document that does not fit continues in
the next row. Three rules decide where a row ends:

- The last position is [SEP], and only the last row of a shard is padded.
- Words are not cut: the row ends before the word, and [SEP] fills the positions left, as it does a
  single position left after a document. Full rows need no attention mask.
- A word of more than L / 4 subwords may be cut; its tail in the next row has no word start, so it
  is never masked.

`windows` gives every document its own padded rows: windows of its tokens, each of which begins
`stride` tokens after the one before, at the start of a word.

Dimensions: T tokens of a stream (each document followed by its [SEP]), B rows, L length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from fitb.corpus.sorted_runs import batches
from fitb.shards.tokenizer import SpecialIds
from fitb.shards.write import Columns

MIN_LENGTH = 8

_BATCH_CHARS = 1_000_000


@dataclass(frozen=True)
class Stream:
    """Tokens of consecutive documents, each followed by [SEP].

    Args:
        ids: (T,) int64, token ids.
        starts: (T,) bool, true on the first subword of each word.
        ends: (T,) bool, true on the [SEP] after a document.
        document: (T,) int64, ordinal of the document in its shard.
        begin: (T,) int32, first character of the token in the normalised text; 0 for [SEP].
        end: (T,) int32, one past the last character of the token; 0 for [SEP].
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.bool_]
    ends: NDArray[np.bool_]
    document: NDArray[np.int64]
    begin: NDArray[np.int32]
    end: NDArray[np.int32]

    def after(self, place: int) -> Stream:
        """Return the tokens from index `place` on."""
        return Stream(*(getattr(self, field.name)[place:] for field in fields(self)))

    def then(self, other: Stream) -> Stream:
        """Return the concatenation of two streams."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Stream(*(np.concatenate(pair) for pair in pairs))


def concatenate(parts: list[Columns]) -> Columns:
    """Concatenate rows."""
    names = [field.name for field in fields(Columns)]
    return Columns(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def token_streams(
    texts: Iterable[str], tokenizer: Tokenizer, special: SpecialIds
) -> Iterator[tuple[Stream | None, NDArray[np.bool_]]]:
    """Encode texts in batches of about a million characters.

    A text in which every token is [UNK] is left out and gets no ordinal.

    Args:
        texts: normalised texts.
        tokenizer: from shards.tokenizer.open_tokenizer.
        special: special ids of the tokenizer.
    Yields: the stream of a batch, None if no text was kept, and (number of texts in the batch,)
        bool, true for texts that were kept.
    """
    ordinal = 0
    for batch in batches(texts, _BATCH_CHARS, len):
        encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
        kept = np.array([any(number != special.unk for number in e.ids) for e in encodings])
        chosen = [encoding for encoding, keep in zip(encodings, kept, strict=True) if keep]
        yield stream_of(chosen, special.sep, first_document=ordinal) if chosen else None, kept
        ordinal += len(chosen)


def stream_of(encodings: list[Encoding], sep_id: int, *, first_document: int = 0) -> Stream:
    """Join the encodings of documents, none of them empty, into a stream.

    Word starts come from the pre-tokenizer's word ids: gaps between offsets would miss those in
    "don't" and in Chinese.
    """
    sizes = np.array([len(encoding) for encoding in encodings])
    num_tokens = int(sizes.sum())
    # Index of every ordinary token after a [SEP] is inserted behind each document.
    places = np.arange(num_tokens) + np.repeat(np.arange(len(sizes)), sizes)
    firsts = np.cumsum(sizes) - sizes
    words = np.fromiter(chain.from_iterable(e.word_ids for e in encodings), np.int64, num_tokens)
    starts = np.ones(num_tokens, dtype=bool)
    starts[1:] = words[1:] != words[:-1]
    starts[firsts] = True
    flat = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
    offsets = np.fromiter(flat, np.int32, 2 * num_tokens).reshape(-1, 2)
    ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int64, num_tokens)

    total = num_tokens + len(sizes)
    stream = Stream(
        ids=np.full(total, sep_id, dtype=np.int64),
        starts=np.zeros(total, dtype=bool),
        ends=np.ones(total, dtype=bool),
        document=np.repeat(first_document + np.arange(len(sizes)), sizes + 1),
        begin=np.zeros(total, dtype=np.int32),
        end=np.zeros(total, dtype=np.int32),
    )
    stream.ids[places], stream.starts[places], stream.ends[places] = ids, starts, False
    stream.begin[places], stream.end[places] = offsets[:, 0], offsets[:, 1]
    return stream


def pack(streams: Iterable[Stream], length: int, special: SpecialIds) -> Iterator[Columns]:
    """Pack streams into rows; the last tokens of a stream may begin the first row of the next.

    Args:
        streams: streams of whole documents, in order.
        length: L, at least 8.
        special: ids of [CLS], [SEP] and [PAD].
    """
    left: Stream | None = None
    for stream in streams:
        stream = stream if left is None else left.then(stream)
        cuts = row_cuts(stream, length)
        if len(cuts) > 1:
            yield _rows(stream, cuts[:-1], cuts[1:], length, special.cls, fill=special.sep)
        left = stream.after(cuts[-1])
    if left is not None and len(left.ids):
        yield _rows(left, [0], [len(left.ids)], length, special.cls, fill=special.pad)


def row_cuts(stream: Stream, length: int) -> list[int]:
    """Return the index of the first token of each row: 0, then one after each full row."""
    total = len(stream.ids)
    word = _word_begins(stream)
    room = length - 2  # tokens between [CLS] and the last [SEP]
    cuts = [0]
    while (cut := cuts[-1] + room) < total:
        if stream.ends[cut]:  # the document's own [SEP] is the last of the row
            cut += 1
        elif cut - word[cut] <= length // 4:
            cut = int(word[cut])
        cuts.append(cut)
    return cuts


def windows(
    streams: Iterable[Stream], length: int, special: SpecialIds, *, stride: int
) -> Iterator[Columns]:
    """Give each document its own rows `[CLS] tokens [SEP] [PAD] ...`.

    Args:
        streams: streams of whole documents, in order.
        length: L, at least 8.
        special: ids of [CLS], [SEP] and [PAD].
        stride: tokens from the begin of a window to the begin of the next, at most L - 2; less if
            that would be inside a word.
    """
    for stream in streams:
        begins, ends = window_bounds(stream, length, stride)
        rows = _rows(stream, begins, ends, length, special.cls, fill=special.pad)
        rows.input_ids[np.arange(len(rows)), 1 + np.array(ends) - np.array(begins)] = special.sep
        yield rows


def window_bounds(stream: Stream, length: int, stride: int) -> tuple[list[int], list[int]]:
    """Return the begins and ends of all windows, which cover every token.

    No window lies inside another, and a word of at most L / 4 subwords is whole in at least one.
    """
    word = _word_begins(stream)
    room = length - 2
    begins, ends = [], []
    first = 0
    for last in np.flatnonzero(stream.ends):  # the [SEP] after a document
        begin, before = first, first
        while before < last:
            end = min(begin + room, int(last))
            if end < last and end - word[end] <= length // 4:
                end = int(word[end])
            if end <= before:  # a word longer than the stride: nothing new in this window
                begin = before
                continue
            begins.append(begin)
            ends.append(end)
            before = end
            following = min(begin + stride, end)
            begin = int(word[following]) if word[following] > begin else following
        first = int(last) + 1
    return begins, ends


def _word_begins(stream: Stream) -> NDArray[np.int64]:
    """(T,) int64: index of the last word start at or before each token."""
    return np.maximum.accumulate(np.where(stream.starts, np.arange(len(stream.ids)), 0))


def _rows(
    stream: Stream,
    begins: Sequence[int],
    ends: Sequence[int],
    length: int,
    first_id: int,
    *,
    fill: int,
) -> Columns:
    """Return rows begin .. end - 1 of a stream, each with at least one ordinary token."""
    begin, end = np.array(begins), np.array(ends)
    steps = np.arange(length - 1)
    filled = steps < (end - begin)[:, None]
    places = np.minimum(begin[:, None] + steps, len(stream.ids) - 1)
    shape = (len(begin), length)

    def spread(values: NDArray, empty: int, first: int) -> NDArray:  # type: ignore[type-arg]
        out = np.empty(shape, dtype=values.dtype)
        out[:, 0] = first
        out[:, 1:] = np.where(filled, values[places], empty)
        return out

    return Columns(
        input_ids=spread(stream.ids, fill, first_id),
        word_starts=spread(stream.starts, False, False),
        doc_begin=stream.document[begin],
        offset_begin=spread(stream.begin, 0, 0),
        offset_end=spread(stream.end, 0, 0),
    )
