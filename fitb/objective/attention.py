"""Distillation of attention scores and of relations between tokens, without L x L matrices.

Legend: B rows, H heads, L length, d head size (t teacher, s student).

The squared Frobenius norm of a difference of scores expands into three inner products,
    |Qt Kt^T / sqrt(dt) - Qs Ks^T / sqrt(ds)|^2
        = <Qt^T Qt, Kt^T Kt> / dt - 2 <Qt^T Qs, Kt^T Ks> / sqrt(dt ds) + <Qs^T Qs, Ks^T Ks> / ds,
each of d x d matrices: (dt + ds)^2 numbers instead of L^2, and both models can use fused attention.
These terms cancel where teacher and student are nearly equal, as in a student whose layers were
copied. Then their heads have one size d, and the difference itself is
    (Qt Kt^T - Qs Ks^T) / sqrt(d) = (dQ Kt^T + Qs dK^T) / sqrt(d), dQ = Qt - Qs, dK = Kt - Ks,
whose norm expands into three inner products of the same cost, each as small as the difference.
Matmuls are in fp32 (TF32 is off by default in torch), and heads are added in fp64.
"""

from __future__ import annotations

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


def attention_loss(
    student: Pair,
    teacher: Pair,
    query_mask: torch.Tensor | None,
    key_mask: torch.Tensor | None,
    version: int = 2,
) -> torch.Tensor:
    """Sum of squared differences of attention scores before softmax (TinyBERT, eq. 7).

    Args:
        student: queries and keys, each (B, H, L, ds), any float dtype.
        teacher: queries and keys, each (B, H, L, dt), any float dtype.
        query_mask: (B, L), 1 on queries that count, 0 elsewhere; None if all count.
        key_mask: (B, L), the same for keys; the values at other positions have no effect.
        version: version of the algorithm, `algorithms.attention`.
    Returns: scalar fp32, at least 0, to be divided by H x queries x keys for the mean.
    """
    with torch.autocast(teacher[0].device.type, enabled=False):
        qt, qs = (
            _counted(pair[0], query_mask, pair[0].shape[-1] ** -0.5) for pair in (teacher, student)
        )
        kt, ks = (_counted(pair[1], key_mask, 1.0) for pair in (teacher, student))
        if version > 1 and qt.shape[-1] == qs.shape[-1]:
            dq, dk = qt - qs, kt - ks
            total = _inner(dq, dq, kt, kt) + 2 * _inner(dq, qs, kt, dk) + _inner(qs, qs, dk, dk)
        else:
            alone = _inner(qt, qt, kt, kt)
            total = alone - 2 * _inner(qt, qs, kt, ks) + _inner(qs, qs, ks, ks)
        return (total if version == 1 else total.clamp(min=0)).float()


def relation_loss(
    student: tuple[torch.Tensor, ...],
    teacher: tuple[torch.Tensor, ...],
    num_heads: int,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Sum of squared differences of relations between tokens: scaled QQ^T, KK^T and VV^T.

    The relations of MiniLMv2 (Wang et al. 2021, section 3.1, https://arxiv.org/abs/2012.15828)
    before the softmax, which needs the L x L matrices. Heads are concatenated and split anew into
    relation heads, so teacher and student may have any number of heads.

    Args:
        student: queries, keys and values, each (B, H, L, d), any float dtype.
        teacher: the same of the teacher, whose H and d may differ.
        num_heads: number of relation heads, of which both widths H x d are multiples.
        mask: (B, L), 1 on tokens that count, 0 elsewhere; None if all count.
    Returns: scalar fp32, to be divided by num_heads x tokens x tokens for the sum of three means.
    """
    total = torch.zeros((), device=teacher[0].device)
    for ours, theirs in zip(student, teacher, strict=True):
        ours, theirs = _split(ours, num_heads), _split(theirs, num_heads)
        total = total + attention_loss((ours, ours), (theirs, theirs), mask, mask)
    return total


def _split(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, H, L, d) -> (B, num_heads, L, H * d / num_heads)."""
    joined = states.transpose(1, 2).flatten(2)
    return joined.view(*joined.shape[:2], num_heads, -1).transpose(1, 2)


def _counted(states: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """(B, H, L, d) fp32, contiguous and scaled; zero at positions that do not count."""
    states = states.to(torch.float32, memory_format=torch.contiguous_format)
    states = states * scale if scale != 1 else states
    return states if mask is None else states.masked_fill(mask[:, None, :, None] == 0, 0.0)


def _inner(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """<A^T B, C^T D>, summed over rows and heads: scalar fp64."""
    per_head = ((a.mT @ b) * (c.mT @ d)).sum((-2, -1))
    return per_head.sum(dtype=torch.float64)
