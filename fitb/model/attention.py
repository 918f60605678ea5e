"""Softmax attention in the form that is fastest on the device at hand.

Legend: B rows, H heads, L length, d head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_UNFUSED_TOKENS = 2048  # up to which L x L weights in bf16 are worth their memory on a CPU


def choose(wanted: str, device: torch.device, dtype: torch.dtype, length: int) -> str:
    """Resolve `auto`: fused attention, but for bf16 on a CPU.

    There torch's fused kernel is no faster than in fp32, while unfused matmuls go through oneDNN:
    2 to 2.5 times as fast up to 2,048 tokens (docs/experiments.md).
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
        query, key, value: (B, H, L, d).
        mask: (B, 1, 1, L) bool, false on keys that do not exist; None where all do.
        scale: of the scores.
        dropout: probability that a weight is zeroed.
        how: sdpa is torch's fused attention, without L x L memory; eager builds the scores.
    """
    if how == "sdpa":
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale
        )
    scores = (query * scale) @ key.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return F.dropout(scores.softmax(-1), dropout) @ value
