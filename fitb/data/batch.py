"""Batches of masked rows as tensors, the input of models and losses."""

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
    """Masked rows as int64 tensors, with the names and shapes of `Masked`.

    Args:
        padded: whether a row may end in padding; known on the host, so that no device is
            synchronised for it.
        rows: (n,) int64, row numbers in the split, for logs; parts and copies of a batch keep those
            of the whole batch.
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
        """Make a batch that shares the memory of masked rows."""
        tensors = {f.name: torch.from_numpy(getattr(masked, f.name)) for f in fields(masked)}
        return cls(**tensors, padded=not masked.attention_mask.all(), rows=rows)

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Copy into pinned memory, from which a GPU copies asynchronously."""
        return self._each(torch.Tensor.pin_memory)

    def part(self, begin: int, end: int) -> Batch:
        return self._each(lambda tensor: tensor[begin:end])

    def real(self) -> torch.Tensor | None:
        """(B, L) bool, false on padding; None if there is no padding."""
        return self.attention_mask.bool() if self.padded else None

    def coverage(self) -> torch.Tensor:
        """(4,) float64: rows, real tokens, masked positions, squared masked positions of a row."""
        used = (self.labels != IGNORE_INDEX).sum(1).double()
        rows, tokens = used.new_tensor(len(used)), self.attention_mask.sum().double()
        return torch.stack([rows, tokens, used.sum(), used.square().sum()])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        names = (field.name for field in fields(self) if field.name not in ("padded", "rows"))
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)
