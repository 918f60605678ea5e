"""A sample of a split: ranges of consecutive rows, from which whole documents can be counted.

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
    """Consecutive rows begin .. end - 1 of a shard, counted in its file."""

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
        segments: (B, L) int64, for tokens of text the number of their document in the split; -1 for
            [CLS], [SEP] and [PAD].
        ranges: that the rows come from, in order.
    """

    rows: NDArray[np.int64]
    input_ids: NDArray[np.int64]
    word_starts: NDArray[np.bool_]
    segments: NDArray[np.int64]
    ranges: tuple[RowRange, ...]


def choose_ranges(shard_rows: Sequence[int], wanted: int) -> tuple[RowRange, ...]:
    """Return ranges of `wanted` rows in all, or of every row where there are fewer.

    Neighbours are one range, so that no document is taken for a cut one.
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

    Raises: DataError where a shard is damaged, and what fetching a remote one raises.
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
    """(documents,) int64, tokens of each document that lies in a range as a whole."""
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
