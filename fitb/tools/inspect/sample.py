"""Sample of a split: ranges of consecutive rows, so that it holds whole documents.

Legend: B rows of the sample, L length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fitb.shards.documents import documents_at
from fitb.shards.shard_set import ShardSet
from fitb.shards.tokenizer import SpecialIds

_NUM_RANGES = 8


@dataclass(frozen=True)
class RowRange:
    """Rows begin .. end - 1 of a shard."""

    shard: int
    begin: int
    end: int


@dataclass(frozen=True)
class Sample:
    """Rows of a split, range after range.

    Args:
        rows: (B,) int64, row numbers in the split.
        input_ids: (B, L) int64.
        word_starts: (B, L) bool.
        segments: (B, L) int64, document number of each token of text; -1 for [CLS], [SEP], [PAD].
        ranges: ranges of the rows, in order.
    """

    rows: NDArray[np.int64]
    input_ids: NDArray[np.int64]
    word_starts: NDArray[np.bool_]
    segments: NDArray[np.int64]
    ranges: tuple[RowRange, ...]


def choose_ranges(shard_rows: Sequence[int], wanted: int) -> tuple[RowRange, ...]:
    """Return ranges of `wanted` rows in total, or of all rows if there are fewer.

    Adjacent ranges are merged, so that the documents at their borders count as whole.
    """
    total = sum(shard_rows)
    wanted = min(wanted, total)
    ends = np.cumsum(shard_rows)
    ranges: list[RowRange] = []
    for i in range(_NUM_RANGES):
        begin = i * wanted // _NUM_RANGES + i * (total - wanted) // _NUM_RANGES
        end = begin + (i + 1) * wanted // _NUM_RANGES - i * wanted // _NUM_RANGES
        while begin < end:
            shard = int(np.searchsorted(ends, begin, side="right"))
            first = int(ends[shard]) - shard_rows[shard]
            stop = min(end, int(ends[shard]))
            found = RowRange(shard, begin - first, stop - first)
            if ranges and (ranges[-1].shard, ranges[-1].end) == (shard, found.begin):
                found = RowRange(shard, ranges.pop().begin, found.end)
            ranges.append(found)
            begin = stop
    return tuple(ranges)


def read_sample(shards: ShardSet, wanted: int, special: SpecialIds) -> Sample:
    """Read about `wanted` rows.

    Raises: DataError if a shard is damaged, and what fetching a remote one raises.
    """
    ranges = choose_ranges(shards.shard_rows, wanted)
    firsts = np.cumsum(shards.shard_rows) - shards.shard_rows
    rows = np.concatenate([firsts[each.shard] + np.arange(each.begin, each.end) for each in ranges])
    read = shards.read(rows)
    first = shards.document_numbers(rows)
    return Sample(
        rows=rows,
        input_ids=read.input_ids,
        word_starts=read.word_starts,
        segments=documents_at(read.input_ids, first, sep_id=special.sep, pad_id=special.pad),
        ranges=ranges,
    )


def document_lengths(sample: Sample, shard_rows: Sequence[int]) -> NDArray[np.int64]:
    """Return (documents,) int64, the tokens of each document that a range holds whole."""
    lengths, begin = [np.zeros(0, dtype=np.int64)], 0
    for each in sample.ranges:
        end = begin + each.end - each.begin
        segments = sample.segments[begin:end]
        found = segments[segments >= 0]
        if len(found):
            counts = np.bincount(found - found.min())
            first = 0 if each.begin == 0 else 1
            last = len(counts) - (0 if each.end == shard_rows[each.shard] else 1)
            lengths.append(counts[first:last])
        begin = end
    return np.concatenate(lengths)
