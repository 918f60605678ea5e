"""Attention-score distillation without a single L x L matrix.

Legend: B rows, H heads, L length, d head size (t teacher, s student).

For one head the difference of the scores is one product,
    Qt Kt^T / sqrt(dt) - Qs Ks^T / sqrt(ds) = A C^T,
    A = [Qt / sqrt(dt) | -Qs / sqrt(ds)],  C = [Kt | Ks],
and the squared Frobenius norm of A C^T is the sum of (A^T A) * (C^T C): an affair of (dt + ds)^2
numbers instead of L^2. Both models are free to run fused attention. The price is cancellation where
teacher and student nearly agree, so it is done in fp32 (torch keeps TF32
off unless it is asked for).
"""

from __future__ import annotations

import torch


def split_heads(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, L, H * d) -> (B, H, L, d)."""
    rows, length, width = states.shape
    return states.view(rows, length, num_heads, width // num_heads).transpose(1, 2)


def attention_loss(
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
    query_mask: torch.Tensor,
    key_mask: torch.Tensor,
) -> torch.Tensor:
    """Sum of squared differences of attention scores before softmax (TinyBERT, eq. 7).

    Args:
        student: queries and keys, each (B, H, L, ds), any float dtype.
        teacher: queries and keys, each (B, H, L, dt).
        query_mask: (B, L), 1 on the query rows that count, 0 elsewhere.
        key_mask: (B, L), the same for key columns; what stands in masked cells has no effect.
    Returns: scalar fp32; its mean is over H x queries x keys.
    """
    with torch.autocast(teacher[0].device.type, enabled=False):
        a = _beside(teacher[0], student[0], sign=-1.0)
        c = _beside(teacher[1], student[1], sign=None)
        a = a.masked_fill(query_mask[:, None, :, None] == 0, 0.0)
        c = c.masked_fill(key_mask[:, None, :, None] == 0, 0.0)
        return ((a.mT @ a) * (c.mT @ c)).sum()


def _beside(teacher: torch.Tensor, student: torch.Tensor, sign: float | None) -> torch.Tensor:
    """(B, H, L, dt + ds) fp32; with a sign the halves are scaled as queries are."""
    teacher, student = teacher.float(), student.float()
    if sign is not None:
        teacher = teacher * teacher.shape[-1] ** -0.5
        student = student * (sign * student.shape[-1] ** -0.5)
    return torch.cat([teacher, student], dim=-1)
