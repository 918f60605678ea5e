"""Attention-score distillation loss without L x L matrices.

Legend: B rows, H heads, L length, d head size (t teacher, s student).

The squared Frobenius norm of a difference of scores expands into three inner products,
    |Qt Kt^T / sqrt(dt) - Qs Ks^T / sqrt(ds)|^2
        = <Qt^T Qt, Kt^T Kt> / dt - 2 <Qt^T Qs, Kt^T Ks> / sqrt(dt ds) + <Qs^T Qs, Ks^T Ks> / ds,
each of d x d matrices: (dt + ds)^2 numbers instead of L^2, and both models can use fused attention.
Nearly equal teacher and student cancel, so matmuls are in fp32 (TF32 is off by default in torch)
and the three terms are added in fp64.
"""

from __future__ import annotations

import torch


def attention_loss(
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
    query_mask: torch.Tensor | None,
    key_mask: torch.Tensor | None,
) -> torch.Tensor:
    """Sum of squared differences of attention scores before softmax (TinyBERT, eq. 7).

    Args:
        student: queries and keys, each (B, H, L, ds), any float dtype.
        teacher: queries and keys, each (B, H, L, dt), any float dtype.
        query_mask: (B, L), 1 on queries that count, 0 elsewhere; None if all count.
        key_mask: (B, L), the same for keys; the values at other positions have no effect.
    Returns: scalar fp32, to be divided by H x queries x keys for the mean.
    """
    with torch.autocast(teacher[0].device.type, enabled=False):
        qt, qs = (
            _counted(pair[0], query_mask, pair[0].shape[-1] ** -0.5) for pair in (teacher, student)
        )
        kt, ks = (_counted(pair[1], key_mask, 1.0) for pair in (teacher, student))
        alone = _inner(qt, qt, kt, kt)
        return (alone - 2 * _inner(qt, qs, kt, ks) + _inner(qs, qs, ks, ks)).float()


def _counted(states: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """(B, H, L, d) fp32, contiguous and scaled; zero at positions that do not count."""
    states = states.to(torch.float32, memory_format=torch.contiguous_format)
    states = states * scale if scale != 1 else states
    return states if mask is None else states.masked_fill(mask[:, None, :, None] == 0, 0.0)


def _inner(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """<A^T B, C^T D>, summed over rows and heads: scalar fp64."""
    per_head = ((a.mT @ b) * (c.mT @ d)).sum((-2, -1))
    return per_head.sum(dtype=torch.float64)
