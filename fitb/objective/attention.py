"""Attention-score distillation without a single L x L matrix.

Legend: B rows, H heads, L length, d head size (t teacher, s student).

The squared Frobenius norm of a difference of scores opens into three inner products,
    |Qt Kt^T / sqrt(dt) - Qs Ks^T / sqrt(ds)|^2
        = <Qt^T Qt, Kt^T Kt> / dt - 2 <Qt^T Qs, Kt^T Ks> / sqrt(dt ds) + <Qs^T Qs, Ks^T Ks> / ds,
each of d x d matrices: an affair of (dt + ds)^2 numbers instead of L^2, and both models are free to
run fused attention. The price is cancellation where teacher and student nearly agree, so it is done
in fp32 (torch keeps TF32 off unless it is asked for), and the three are added in fp64.
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
        teacher: queries and keys, each (B, H, L, dt).
        query_mask: (B, L), 1 on the query rows that count, 0 elsewhere; None where all count.
        key_mask: (B, L), the same for key columns; what stands in masked cells has no effect.
    Returns: scalar fp32; its mean is over H x queries x keys.
    """
    with torch.autocast(teacher[0].device.type, enabled=False):
        qt, qs = (
            _counted(pair[0], query_mask, pair[0].shape[-1] ** -0.5) for pair in (teacher, student)
        )
        kt, ks = (_counted(pair[1], key_mask, 1.0) for pair in (teacher, student))
        alone = _inner(qt, qt, kt, kt)
        return (alone - 2 * _inner(qt, qs, kt, ks) + _inner(qs, qs, ks, ks)).float()


def _counted(states: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """(B, H, L, d) fp32, scaled, head after head in memory; zero where it does not count."""
    states = states.to(torch.float32, memory_format=torch.contiguous_format)
    states = states * scale if scale != 1 else states
    return states if mask is None else states.masked_fill(mask[:, None, :, None] == 0, 0.0)


def _inner(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """<A^T B, C^T D>, summed over rows and heads: scalar fp64."""
    per_head = ((a.mT @ b) * (c.mT @ d)).sum((-2, -1))
    return per_head.sum(dtype=torch.float64)
