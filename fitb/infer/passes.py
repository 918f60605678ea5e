"""Searches that stop for each forward pass, so that those of many texts can share passes.

A search is a generator. It yields a Pass and is sent the logits, or yields None at a point where
others may go on; so whoever drives searches bounds what a pass holds, and chooses who goes on.

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

_ENOUGH_TOKENS = 1024  # a pass of as many gains little by more rows, and loses by padding
_GROWTH = 1.1  # of the rows of such a pass


@dataclass(frozen=True)
class PassLimits:
    """What a forward pass holds at most; one row with its positions always goes in.

    Args:
        tokens: of its rows, padding included.
        positions: through the head: 1,024 of 30,522 logits in fp32 are 125 MB.
    """

    tokens: int = 8192
    positions: int = 1024


@dataclass(frozen=True)
class Pass:
    """Rows for the model, and the positions in each whose logits are wanted."""

    rows: Sequence[Sequence[int]]
    positions: Sequence[Sequence[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]

    @property
    def num_positions(self) -> int:
        return sum(map(len, self.positions))

    @property
    def size(self) -> tuple[list[int], int]:
        return self.lengths, self.num_positions


Steps = Generator[Pass | None, torch.Tensor | None, Found]  # of a search, and what it finds


@dataclass
class Room:
    """Room in a forward pass.

    Args:
        limits: of the whole.
        rows, longest, tokens: of what is in it; tokens with padding.
    """

    limits: PassLimits
    rows: int = 0
    longest: int = 0
    tokens: int = 0
    _shortest: int = 0
    _positions: int = 0

    def add(self, lengths: Sequence[int], positions: int) -> bool:
        """Add rows where there is room; say whether there was. For the first there always is."""
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
    """Cut items, in their order, into what one forward pass holds each.

    Args:
        size_of: lengths of the rows of an item, and how many positions it asks for.
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
    """Return the logits that each pass asks for, (M, V) fp32, from one forward pass."""
    rows = [row for one in passes for row in one.rows]
    positions = [places for one in passes for places in one.positions]
    sizes = [one.num_positions for one in passes]
    return list(torch.split(scorer.logits(rows, positions), sizes))


def drive(scorer: Scorer, searches: Sequence[Steps[Found]], limits: PassLimits) -> list[Found]:
    """Carry searches out, each as far as it comes between two passes; return what they find."""
    found: dict[int, Found] = {}
    wanted: dict[int, Pass] = {}

    def go_on(number: int, logits: torch.Tensor | None) -> None:
        try:
            while (asked := searches[number].send(logits)) is None:
                logits = None
            wanted[number] = asked
        except StopIteration as end:
            found[number] = end.value

    for number in range(len(searches)):
        go_on(number, None)
    while wanted:
        order = sorted(wanted, key=lambda number: len(wanted[number].rows[-1]))
        for mixed in packed(order, lambda number: wanted[number].size, limits):
            answers = forward(scorer, [wanted.pop(number) for number in mixed])
            for number, logits in zip(mixed, answers, strict=True):
                go_on(number, logits)
    return [found[number] for number in range(len(searches))]
