"""Softmax attention, fused (SDPA) or unfused, whichever is faster on the device.

Legend: B rows, H heads, L length, d head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

HEAD_MULTIPLE = 8  # of head sizes that fused kernels on GPUs take together with a mask
_UNFUSED_TOKENS = 2048  # largest L at which unfused attention in bf16 on a CPU is worth its memory


def choose(wanted: str, device: torch.device, dtype: torch.dtype, length: int) -> str:
    """Resolve `auto`: fused attention, except for bf16 on a CPU.

    There torch's fused kernel is no faster than in fp32, while unfused matmuls go through oneDNN:
    2 to 2.5 times as fast up to 2,048 tokens (docs/experiments.md).

    Args:
        wanted: auto, sdpa or eager.
        device: device of the forward pass.
        dtype: dtype of its matmuls.
        length: L.
    Returns: sdpa or eager.
    """
    if wanted != "auto":
        return wanted
    unfused = device.type == "cpu" and dtype == torch.bfloat16 and length <= _UNFUSED_TOKENS
    return "eager" if unfused else "sdpa"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    dropout: float,
    how: str,
) -> torch.Tensor:
    """Return softmax(query key^T x scale) value (Vaswani et al. 2017, section 3.2.1).

    Args:
        query, key, value: (B, H, L, d) each.
        mask: (B, 1, 1, L) bool, false on padding; None if there is none.
        scale: factor of the scores.
        dropout: probability that an attention weight is zeroed.
        how: sdpa, torch's fused attention without L x L memory, or eager, which stores scores.
    Returns: (B, H, L, d).
    """
    if how == "sdpa":
        size = query.shape[-1]
        if query.is_cuda and size % HEAD_MULTIPLE:  # else torch would store L x L scores
            further = -size % HEAD_MULTIPLE
            query, key, value = (F.pad(heads, (0, further)) for heads in (query, key, value))
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale
        )
        return context.narrow(-1, 0, size)
    scores = (query * scale) @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return F.dropout(scores.softmax(-1), dropout) @ value
