"""Runs of consecutive rows, spread over a split: from them whole documents can be counted.

Legend: B rows of the sample, L length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fitb.shards.documents import documents_at
from fitb.shards.shard_set import ShardSet
from fitb.shards.tokenizer import SpecialIds

_NUM_RUNS = 8


@dataclass(frozen=True)
class Run:
    """Consecutive rows begin .. end - 1 of a shard, counted in its file."""

    shard: int
    begin: int
    end: int


@dataclass(frozen=True)
class Sample:
    """Rows of a split, run after run.

    Args:
        rows: (B,) int64, row numbers in the split.
        input_ids: (B, L) int64.
        word_starts: (B, L) bool.
        segments: (B, L) int64, for tokens of text the number of their document in the split; -1 for
            [CLS], [SEP] and [PAD].
        runs: that the rows come from, in order.
    """

    rows: NDArray[np.int64]
    input_ids: NDArray[np.int64]
    word_starts: NDArray[np.bool_]
    segments: NDArray[np.int64]
    runs: tuple[Run, ...]


def choose_runs(shard_rows: Sequence[int], wanted: int) -> tuple[Run, ...]:
    """Return runs of `wanted` rows in all, or of every row where there are fewer."""
    total = sum(shard_rows)
    wanted = min(wanted, total)
    ends = np.cumsum(shard_rows)
    runs = []
    for i in range(_NUM_RUNS):
        begin = i * wanted // _NUM_RUNS + i * (total - wanted) // _NUM_RUNS
        end = begin + (i + 1) * wanted // _NUM_RUNS - i * wanted // _NUM_RUNS
        while begin < end:
            shard = int(np.searchsorted(ends, begin, side="right"))
            first = int(ends[shard]) - shard_rows[shard]
            stop = min(end, int(ends[shard]))
            runs.append(Run(shard, begin - first, stop - first))
            begin = stop
    return tuple(_joined(runs))


def _joined(runs: Sequence[Run]) -> Iterator[Run]:
    """Make one run of neighbours, so that no document is taken for a cut one."""
    before: Run | None = None
    for run in runs:
        if before and (before.shard, before.end) == (run.shard, run.begin):
            before = Run(run.shard, before.begin, run.end)
            continue
        if before:
            yield before
        before = run
    if before:
        yield before


def read_sample(shards: ShardSet, wanted: int, special: SpecialIds) -> Sample:
    """Read about `wanted` rows.

    Raises: DataError where a shard is damaged, and what fetching a remote one raises.
    """
    runs = choose_runs(shards.shard_rows, wanted)
    firsts = np.cumsum(shards.shard_rows) - shards.shard_rows
    rows = np.concatenate([firsts[run.shard] + np.arange(run.begin, run.end) for run in runs])
    read = shards.read(rows)
    first = shards.document_numbers(rows)
    return Sample(
        rows=rows,
        input_ids=read.input_ids,
        word_starts=read.word_starts,
        segments=documents_at(read.input_ids, first, sep_id=special.sep, pad_id=special.pad),
        runs=runs,
    )


def document_lengths(sample: Sample, shard_rows: Sequence[int]) -> NDArray[np.int64]:
    """(documents,) int64, tokens of each document that lies in a run as a whole."""
    lengths, begin = [], 0
    for run in sample.runs:
        end = begin + run.end - run.begin
        segments = sample.segments[begin:end]
        found = segments[segments >= 0]
        if len(found):
            counts = np.bincount(found - found.min())
            first = 0 if run.begin == 0 else 1
            last = len(counts) - (0 if run.end == shard_rows[run.shard] else 1)
            lengths.append(counts[first:last])
        begin = end
    return np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
