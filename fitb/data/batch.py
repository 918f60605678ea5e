"""Masked rows as tensors: what a model and a loss read."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from fitb.data.masking import IGNORE_INDEX, Masked


@dataclass(frozen=True)
class Batch:
    """Masked rows; the fields are those of Masked, int64 tensors of the same shapes."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    slots: torch.Tensor
    labels: torch.Tensor
    slot_words: torch.Tensor

    @classmethod
    def of(cls, masked: Masked) -> Batch:
        """Share the memory of masked rows."""
        return cls(*(torch.from_numpy(getattr(masked, f.name)) for f in fields(masked)))

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def part(self, begin: int, end: int) -> Batch:
        return Batch(*(getattr(self, f.name)[begin:end] for f in fields(self)))

    def coverage(self) -> torch.Tensor:
        """(4,) float64: rows, real tokens, used slots, sum over rows of used slots squared."""
        used = (self.labels != IGNORE_INDEX).sum(1).double()
        rows = torch.tensor(len(used), dtype=torch.float64)
        return torch.stack(
            [rows, self.attention_mask.sum().double(), used.sum(), used.square().sum()]
        )
