"""Distillation of attention scores and of relations between tokens, without L x L matrices.

Legend: B rows, H heads, L length, d head size (t teacher, s student), D = 2d or dt + ds.

The squared Frobenius norm of a product of tall matrices needs only their D x D Gram matrices,
    |X Y^T|^2 = <X^T X, Y^T Y>,
so both models can use fused attention. A difference of scores is such a product,
    Qt Kt^T / sqrt(dt) - Qs Ks^T / sqrt(ds) = [Qt / sqrt(dt) | -Qs / sqrt(ds)] [Kt | Ks]^T,
whose terms cancel where teacher and student are nearly equal, as in a student whose layers were
copied. Then their heads have one size d, and the difference can be written as
    (Qt Kt^T - Qs Ks^T) / sqrt(d) = [dQ | Qs] [Kt | dK]^T / sqrt(d), dQ = Qt - Qs, dK = Kt - Ks,
where every term is as small as the difference. Products are summed in fp32: on a GPU those of
16-bit numbers by tensor cores, which multiply them exactly; others by fp32 kernels (TF32 is off by
default in torch). Heads are added in fp64.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

Pair = tuple[torch.Tensor, torch.Tensor]
_MULTIPLE = 8  # of matrix sizes that tensor cores are fast at


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
        qt, qs = (_counted(pair[0], query_mask) for pair in (teacher, student))
        kt, ks = (_counted(pair[1], key_mask) for pair in (teacher, student))
        scales = qt.shape[-1] ** -0.5, qs.shape[-1] ** -0.5
        if version > 1 and qt.shape[-1] == qs.shape[-1]:
            total = _squared_norm((qt - qs, qs), (kt, kt - ks), scales)
        else:
            total = _squared_norm((qt, qs), (kt, ks), (scales[0], -scales[1]))
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


def _counted(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B, H, L, d) in fp32, or 16 bits for tensor cores; zero at positions that do not count."""
    states = states if _for_tensor_cores(states) else states.float()
    return states if mask is None else states.masked_fill(mask[:, None, :, None] == 0, 0.0)


def _for_tensor_cores(states: torch.Tensor) -> bool:
    return states.is_cuda and states.dtype in (torch.float16, torch.bfloat16)


def _squared_norm(x: Pair, y: Pair, scales: tuple[float, float]) -> torch.Tensor:
    """|[a x0 | b x1] [y0 | y1]^T|^2 for scales a, b, summed over rows and heads: scalar fp64.

    Args:
        x, y: (B, H, L, d0) and (B, H, L, d1) each, of one dtype.
    """
    y = y[0].view_as(y[0]), y[1].view_as(y[1])  # torch.compile takes no argument twice
    norm: torch.Tensor = _SquaredNorm.apply(*x, *y, scales)  # type: ignore[no-untyped-call]
    return norm


class _SquaredNorm(torch.autograd.Function):
    """Saves the joined matrices and their Gram matrices; one product each, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x0: torch.Tensor,
        x1: torch.Tensor,
        y0: torch.Tensor,
        y1: torch.Tensor,
        scales: tuple[float, float],
    ) -> torch.Tensor:
        x, y = _joined(x0, x1), _joined(y0, y1)
        gram_x, gram_y = _product(x.mT, x), _product(y.mT, y)
        scale = gram_x.new_full((x.shape[-1],), scales[0])
        scale[x0.shape[-1] :] = scales[1]
        gram_x *= scale[:, None] * scale
        ctx.save_for_backward(x, y, gram_x, gram_y, scale)
        ctx.shapes = [part.shape for part in (x0, x1, y0, y1)]
        return (gram_x * gram_y).sum((-2, -1)).sum(dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, y, gram_x, gram_y, scale = ctx.saved_tensors
        twice = 2 * grad.float()
        slopes = (x, gram_y * (scale[:, None] * scale)), (y, gram_x)
        gradients: list[torch.Tensor | None] = [None] * 4
        for place, shape in enumerate(ctx.shapes):
            if ctx.needs_input_grad[place]:
                states, slope = slopes[place // 2]
                begin = ctx.shapes[place - 1][-1] if place % 2 else 0
                part = _scaled_product(states, slope[..., begin : begin + shape[-1]])
                gradients[place] = (part * twice).to(states.dtype).view(shape)
        return *gradients, None


def _joined(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(B, H, L, d) each -> (B * H, L, D), with columns of zeros for tensor cores."""
    joined = torch.cat((first, second), -1).flatten(0, 1)
    further = -joined.shape[-1] % _MULTIPLE if _for_tensor_cores(joined) else 0
    return F.pad(joined, (0, further)) if further else joined


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a @ b of (n, i, j) and (n, j, k), summed in fp32: (n, i, k) fp32."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _scaled_product(states: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Return states @ slope in fp32.

    16-bit states multiply the slope, scaled to their range, as a sum of two 16-bit numbers: one
    alone would lose the gradient where terms of both models cancel.
    """
    if states.dtype == torch.float32:
        return states @ slope
    highest = slope.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    slope = slope / highest
    coarse = slope.to(states.dtype)
    fine = (slope - coarse.float()).to(states.dtype)
    return (_product(states, coarse) + _product(states, fine)) * highest
