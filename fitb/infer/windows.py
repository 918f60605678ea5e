"""Sliding windows for rows longer than the model's training length, around the positions asked for.

A window is a range of the row of the training length, with the row's own [CLS] and [SEP] at its
ends. Nearby positions share a window, and each window is centred on its positions.

Legend: M positions asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Rows = Sequence[Sequence[int]]
_SHARED = 0.75  # share of a window that positions which are not neighbours may span


@dataclass(frozen=True)
class Window:
    """A range of a row, whose first and last token are replaced by the row's [CLS] and [SEP].

    Args:
        begin: first token.
        end: one after the last token.
        numbers: indices of the positions asked for that this window answers.
    """

    begin: int
    end: int
    numbers: tuple[int, ...]

    def cut(self, row: Sequence[int]) -> list[int]:
        """Return the token ids of the window."""
        return [row[0], *row[self.begin + 1 : self.end - 1], row[-1]][: self.end - self.begin]


def windows_of(num_tokens: int, positions: Sequence[int], most: int) -> list[Window]:
    """Choose windows that cover every position; a row that fits is one whole window.

    Args:
        num_tokens: tokens of the row, [CLS] and [SEP] included.
        positions: positions asked for, in any order, possibly repeated.
        most: tokens of a window; at least 3.
    Returns: windows of exactly `most` tokens, in ascending order, as are their positions. Adjacent
        positions are never separated if they fit into one window.
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
    """Whether position `new` joins the window of the positions from `first` to `last`."""
    room = most - 2
    return new - first < (room if new - last <= 1 else int(_SHARED * room))


def in_windows(
    logits: Callable[[Rows, Rows], torch.Tensor], rows: Rows, positions: Rows, most: int
) -> torch.Tensor:
    """Return logits (M, V) for rows of any length; see Scorer.logits.

    Args:
        logits: the same for rows of at most `most` tokens; called once, with `rows` and
            `positions` themselves if every row fits.
        rows: token ids of each row.
        positions: positions asked for in each row.
        most: tokens of a window.
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
