"""Searches as generators, so that those of many texts share forward passes.

A search yields a Pass and is sent its logits, or yields None where it can be suspended. Whoever
drives the searches packs and limits the passes, and decides which search continues.

Legend: V vocabulary, M positions asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from fitb.infer.scorer import Scorer

Found = TypeVar("Found")
Item = TypeVar("Item")

_ENOUGH_TOKENS = 1024  # a larger pass gains little by more rows, and loses by padding
_GROWTH = 1.1  # longest over shortest row of such a pass, at most


@dataclass(frozen=True)
class PassLimits:
    """Limits of a forward pass; a single row is always accepted.

    Args:
        tokens: most tokens of all rows, padding included.
        positions: most positions that go through the head; the logits of 1,024 positions over
            30,522 tokens are 125 MB in fp32.
    """

    tokens: int = 8192
    positions: int = 1024


@dataclass(frozen=True)
class Pass:
    """Rows of token ids for one forward pass, and the positions of each whose logits are wanted."""

    rows: Sequence[Sequence[int]]
    positions: Sequence[Sequence[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]

    @property
    def num_positions(self) -> int:
        return sum(map(len, self.positions))


Steps = Generator[Pass | None, torch.Tensor | None, Found]  # a search and its result


@dataclass
class Room:
    """A forward pass that is being packed.

    Args:
        limits: limits of the pass.
        rows: number of rows packed so far.
        longest: tokens of the longest of them.
        tokens: tokens of all of them, padding included.
    """

    limits: PassLimits
    rows: int = 0
    longest: int = 0
    tokens: int = 0
    _shortest: int = 0
    _positions: int = 0

    def add(self, lengths: Sequence[int], positions: int) -> bool:
        """Add rows if they fit, and return whether they did; the first rows always fit.

        Args:
            lengths: tokens of each row.
            positions: positions asked for in all of them.
        """
        rows, longest = self.rows + len(lengths), max(self.longest, *lengths)
        shortest = min(self._shortest, *lengths) if self.rows else min(lengths)
        tokens = rows * longest
        pads = tokens > _ENOUGH_TOKENS and longest > _GROWTH * shortest
        many = self._positions + positions > self.limits.positions
        if self.rows and (pads or many or tokens > self.limits.tokens):
            return False
        self.rows, self.longest, self.tokens, self._shortest = rows, longest, tokens, shortest
        self._positions += positions
        return True


def packed(
    items: Iterable[Item], size_of: Callable[[Item], tuple[list[int], int]], limits: PassLimits
) -> Iterator[list[Item]]:
    """Split items, in order, into batches that fit one forward pass each.

    Args:
        items: what to batch.
        size_of: returns the tokens of each row of an item, and the number of its positions.
        limits: limits of a pass.
    """
    room, mine = Room(limits), list[Item]()
    for item in items:
        size = size_of(item)
        if not room.add(*size):
            yield mine
            room, mine = Room(limits), []
            room.add(*size)
        mine.append(item)
    if mine:
        yield mine


def forward(scorer: Scorer, passes: Sequence[Pass]) -> list[torch.Tensor]:
    """Run several passes as one; return the logits of each, (M, V) fp32."""
    rows = [row for one in passes for row in one.rows]
    positions = [places for one in passes for places in one.positions]
    sizes = [one.num_positions for one in passes]
    return list(torch.split(scorer.logits(rows, positions), sizes))


def drive(scorer: Scorer, searches: Sequence[Steps[Found]], limits: PassLimits) -> list[Found]:
    """Run searches to their end, sharing forward passes; return their results in order."""
    found: dict[int, Found] = {}
    wanted: dict[int, Pass] = {}

    def go_on(number: int, logits: torch.Tensor | None) -> None:
        try:
            while (asked := searches[number].send(logits)) is None:
                logits = None
            wanted[number] = asked
        except StopIteration as end:
            found[number] = end.value

    def size_of(number: int) -> tuple[list[int], int]:
        return wanted[number].lengths, wanted[number].num_positions

    for number in range(len(searches)):
        go_on(number, None)
    while wanted:
        order = sorted(wanted, key=lambda number: len(wanted[number].rows[-1]))
        for mixed in packed(order, size_of, limits):
            answers = forward(scorer, [wanted.pop(number) for number in mixed])
            for number, logits in zip(mixed, answers, strict=True):
                go_on(number, logits)
    return [found[number] for number in range(len(searches))]
