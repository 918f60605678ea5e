"""Rows longer than a model was trained at: cut into windows around the positions asked for.

A window is a stretch of the row as long as the model was trained at, with the row's own [CLS] and
[SEP] at its ends. Positions near each other share one, and each window lies centred on its own.

Legend: M positions asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Rows = Sequence[Sequence[int]]
_SHARED = 0.75  # of a window's tokens, for positions that are not neighbours


@dataclass(frozen=True)
class Window:
    """Tokens begin to end of a row, end excluded; the first and last are the row's own.

    Args:
        numbers: which of the positions asked for it answers.
    """

    begin: int
    end: int
    numbers: tuple[int, ...]

    def cut(self, row: Sequence[int]) -> list[int]:
        return [row[0], *row[self.begin + 1 : self.end - 1], row[-1]][: self.end - self.begin]


def windows_of(num_tokens: int, positions: Sequence[int], most: int) -> list[Window]:
    """Choose windows so that each position lies in one; a row that fits is one window, whole.

    Args:
        num_tokens: of the row, [CLS] and [SEP] included.
        positions: in any order, repeated or not.
        most: tokens of a window; at least 3.
    Returns: windows of exactly `most` tokens, ascending, in each of which positions ascend. A run
        of neighbouring positions is never cut where it fits into a window.
    """
    if num_tokens <= most:
        return [Window(0, num_tokens, tuple(range(len(positions))))]
    groups: list[list[int]] = []
    for number in sorted(range(len(positions)), key=positions.__getitem__):
        mine = groups[-1] if groups else []
        if mine and _joins(positions[mine[0]], positions[mine[-1]], positions[number], most):
            mine.append(number)
        else:
            groups.append([number])
    found = []
    for group in groups:
        middle = (positions[group[0]] + positions[group[-1]] + 1 - most) // 2
        begin = min(max(middle, 0), num_tokens - most)
        found.append(Window(begin, begin + most, tuple(group)))
    return found


def _joins(first: int, last: int, new: int, most: int) -> bool:
    """Whether a position joins the window of those from `first` to `last`."""
    room = most - 2
    return new - first < (room if new - last <= 1 else int(_SHARED * room))


def num_window_tokens(num_tokens: int, positions: Sequence[int], most: int) -> int:
    """Return how many tokens a row takes through a model."""
    return sum(window.end - window.begin for window in windows_of(num_tokens, positions, most))


def in_windows(
    logits: Callable[[Rows, Rows], torch.Tensor], rows: Rows, positions: Rows, most: int
) -> torch.Tensor:
    """Ask for logits (M, V) as Scorer does, of rows of any length.

    Args:
        logits: does so of rows of `most` tokens at most; is called once, and with the very rows
            and positions where all of them fit.
    """
    if max(map(len, rows)) <= most:
        return logits(rows, positions)
    parts: list[Sequence[int]] = []
    places: list[list[int]] = []
    order: list[int] = []
    for row, asked in zip(rows, positions, strict=True):
        before = len(order)
        for window in windows_of(len(row), asked, most):
            parts.append(window.cut(row))
            places.append([asked[number] - window.begin for number in window.numbers])
            order += [before + number for number in window.numbers]
    found = logits(parts, places)
    return found[torch.tensor(order).argsort()]
