"""Masked rows as tensors: what a model and a loss read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fitb.data.masking import IGNORE_INDEX, Masked


@dataclass(frozen=True)
class Batch:
    """Masked rows; the tensors are those of Masked, int64 of the same shapes.

    Args:
        padded: whether a row may end in padding; known before the rows leave the host, so that no
            device is asked.
        rows: (n,) int64, numbers in the split of what was read, for the record; parts and copies of
            a batch keep those of the whole.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    slots: torch.Tensor
    labels: torch.Tensor
    slot_words: torch.Tensor
    padded: bool = True
    rows: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, masked: Masked, rows: NDArray[np.int64] | None = None) -> Batch:
        """Share the memory of masked rows."""
        tensors = {f.name: torch.from_numpy(getattr(masked, f.name)) for f in fields(masked)}
        return cls(**tensors, padded=not masked.attention_mask.all(), rows=rows)

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Copy into memory that a GPU reads by itself, while the host goes on."""
        return self._each(torch.Tensor.pin_memory)

    def part(self, begin: int, end: int) -> Batch:
        return self._each(lambda tensor: tensor[begin:end])

    def real(self) -> torch.Tensor | None:
        """(B, L) bool, false on padding; None where there is none."""
        return self.attention_mask.bool() if self.padded else None

    def coverage(self) -> torch.Tensor:
        """(4,) float64: rows, real tokens, used slots, sum over rows of used slots squared."""
        used = (self.labels != IGNORE_INDEX).sum(1).double()
        rows = torch.tensor(len(used), dtype=torch.float64)
        return torch.stack(
            [rows, self.attention_mask.sum().double(), used.sum(), used.square().sum()]
        )

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        names = (field.name for field in fields(self) if field.name not in ("padded", "rows"))
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)
