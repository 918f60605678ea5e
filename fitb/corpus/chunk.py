"""Documents to rows of fixed length, without loss and almost without padding.

A row is `[CLS] tokens [SEP] tokens [SEP] ...`. A document that does not fit goes on in the next
row. Three rules settle the end of a row:

- The last place is [SEP], and only the last row of a shard is padded.
- A word is not cut: the row closes before it, and the places left take [SEP], as does a single
  place left after a document. Full rows need no attention mask.
- Except that a word of more than a quarter row may be cut; what follows in the next row has no
  word start, so no mask falls on it.

The other way, `windows`, gives every document rows of its own: windows of its tokens, each padded,
the next beginning `stride` tokens after the one before, at the start of a word.

Dimensions: T tokens of a stream (each document followed by its [SEP]), B rows, L length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from fitb.shards.tokenizer import SpecialIds
from fitb.shards.write import Columns

MIN_LENGTH = 8

_BATCH_CHARS = 1_000_000


@dataclass(frozen=True)
class Stream:
    """Tokens of consecutive documents, one [SEP] after each.

    Args:
        ids: (T,) int64.
        starts: (T,) bool, true on the first piece of each word.
        ends: (T,) bool, true on the [SEP] after a document.
        document: (T,) int64, ordinal of the document in its shard.
        begin: (T,) int32, first character of the token in the normalised text; 0 for [SEP].
        end: (T,) int32, one past its last character; 0 for [SEP].
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.bool_]
    ends: NDArray[np.bool_]
    document: NDArray[np.int64]
    begin: NDArray[np.int32]
    end: NDArray[np.int32]

    def after(self, place: int) -> Stream:
        """Return the tokens from `place` on."""
        return Stream(*(getattr(self, field.name)[place:] for field in fields(self)))

    def then(self, other: Stream) -> Stream:
        """Return the tokens of both."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Stream(*(np.concatenate(pair) for pair in pairs))


def concatenate(parts: list[Columns]) -> Columns:
    """Return the rows of all parts in order."""
    names = [field.name for field in fields(Columns)]
    return Columns(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def token_streams(
    texts: Iterable[str], tokenizer: Tokenizer, special: SpecialIds
) -> Iterator[tuple[Stream | None, NDArray[np.bool_]]]:
    """Encode texts in batches of about a million characters.

    A text without any token that the vocabulary knows is left out and gets no ordinal.

    Args:
        texts: normalised.
        tokenizer: from tokenizer.open_tokenizer.
        special: its special ids.
    Yields: the stream of a batch, None where nothing was kept, and (texts of the batch,) bool,
        true where one was kept.
    """
    ordinal = 0
    for batch in _batches(texts):
        encodings = tokenizer.encode_batch(batch, add_special_tokens=False)
        kept = np.array([len(encoding) > 0 for encoding in encodings])
        stream = _stream_of_kept(encodings, kept, special, ordinal)
        if stream is not None:
            known = (stream.ids != special.unk) & ~stream.ends
            begins = np.flatnonzero(np.append(True, stream.ends[:-1]))
            speaks = np.logical_or.reduceat(known, begins)
            if not speaks.all():  # rare
                kept[kept] = speaks
                stream = _stream_of_kept(encodings, kept, special, ordinal)
        ordinal += int(kept.sum())
        yield stream, kept


def _stream_of_kept(
    encodings: list[Encoding], kept: NDArray[np.bool_], special: SpecialIds, first_document: int
) -> Stream | None:
    chosen = [encoding for encoding, keep in zip(encodings, kept, strict=True) if keep]
    return stream_of(chosen, special.sep, first_document=first_document) if chosen else None


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_chars = 0
    for text in texts:
        batch.append(text)
        num_chars += len(text)
        if num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def stream_of(encodings: list[Encoding], sep_id: int, *, first_document: int = 0) -> Stream:
    """Join the encodings of documents, none of them empty.

    Word starts come from the pre-tokenizer's word ids: gaps between offsets miss the words of
    "don't" or of Chinese.
    """
    sizes = np.array([len(encoding) for encoding in encodings])
    num_tokens = int(sizes.sum())
    # Place of every ordinary token once each document before it has its [SEP].
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
    """Pack streams into rows; tokens left over from one stream begin the next.

    Args:
        streams: in order, each of whole documents.
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
    """Return where rows begin: 0, then one place after each row that the stream fills."""
    total = len(stream.ids)
    word = _word_begins(stream)
    room = length - 2  # tokens between [CLS] and the [SEP] that closes the row
    cuts = [0]
    while (cut := cuts[-1] + room) < total:
        if stream.ends[cut]:  # the document's own [SEP] closes the row
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
        streams: in order, each of whole documents.
        length: L, at least 8.
        special: ids of [CLS], [SEP] and [PAD].
        stride: tokens from the begin of a window to that of the next, at most L - 2; the next
            begins earlier where that is inside a word.
    """
    for stream in streams:
        begins, ends = window_bounds(stream, length, stride)
        rows = _rows(stream, begins, ends, length, special.cls, fill=special.pad)
        rows.input_ids[np.arange(len(rows)), 1 + np.array(ends) - np.array(begins)] = special.sep
        yield rows


def window_bounds(stream: Stream, length: int, stride: int) -> tuple[list[int], list[int]]:
    """Return the begins and ends of all windows: together they hold every token of a document.

    No window is part of another, and a word of at most L/4 pieces is whole in at least one.
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
    """(T,) the last word start at or before each token."""
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
    """Cut rows out of a stream; each holds at least one ordinary token."""
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
