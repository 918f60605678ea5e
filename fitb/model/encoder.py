"""A BERT's forward pass, written out: what each layer computes, and the states that are asked for.

The weights stay where transformers keeps them and keep their names; only the order of the
operations is ours, so that queries, keys and hidden states are returned instead of caught, no mask
is looked at on the host, and a compiler sees one graph.

Legend: B rows, L length, K slots of a row, D hidden, H heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertForMaskedLM

from fitb.model.attention import attend
from fitb.model.load import encoder, mlm_head

_HEAD_MULTIPLE = 8  # head sizes that fused attention on GPUs takes as they are
_VOCABULARY_MULTIPLE = 64  # logits of whole cache lines, for the tensor cores' kernels
_NEVER = torch.finfo(torch.float16).min  # a logit that every precision holds and softmax makes 0


@dataclass(frozen=True)
class Kernels:
    """How a forward pass is executed; what it computes stays the same, to rounding.

    Args:
        attention: sdpa or eager, as in `attend`.
        pad: compute with heads of a multiple of 8 and a vocabulary of a multiple of 64, which GPU
            kernels are made for. Weights of further columns are zero, and further logits so low
            that softmax makes 0 of them.
    """

    attention: str = "sdpa"
    pad: bool = False


DEFAULT = Kernels()


@dataclass(frozen=True)
class Encoded:
    """What an encoder says about a batch.

    Args:
        last: (B, L, D), after the last layer; (B, K, D) where slots were given.
        hidden: (B, L, D) each: the embeddings, then the layers that were asked for, in their order.
        pairs: queries and keys, (B, H, L, d) each, of those layers.
    """

    last: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    pairs: tuple[tuple[torch.Tensor, torch.Tensor], ...]


def encode(
    model: BertForMaskedLM,
    input_ids: torch.Tensor,
    real: torch.Tensor | None,
    *,
    layers: Sequence[int] = (),
    slots: torch.Tensor | None = None,
    kernels: Kernels = DEFAULT,
) -> Encoded:
    """Run the encoder of a BERT (Devlin et al. 2019, section 3; layers as in Vaswani et al. 2017).

    Args:
        model: its dropout is as in transformers: on in train mode.
        input_ids: (B, L) int64.
        real: (B, L) bool, false on padding; None where there is none, which is faster.
        layers: numbers of the layers whose states are returned, 1 is the first, in any order; not
            the last one where slots are given.
        slots: (B, K) int64; the last layer answers at these positions alone, a fifth of the work
            of four layers less.
    """
    bert: Any = encoder(model)
    mask = None if real is None else real[:, None, None, :]
    state = bert.embeddings(input_ids)
    hidden, pairs = {0: state}, {}
    for number, layer in enumerate(bert.encoder.layer, 1):
        asked = state if slots is None or number < len(bert.encoder.layer) else _at(state, slots)
        context, pair = _self_attention(layer.attention, asked, state, mask, kernels)
        between = layer.attention.output(context, asked)
        state = layer.output(layer.intermediate(between), between)
        if number in layers:  # the others' memory is free again
            hidden[number], pairs[number] = state, pair
    return Encoded(
        state,
        tuple(hidden[number] for number in (0, *layers)),
        tuple(pairs[number] for number in layers),
    )


def logits_at(
    model: BertForMaskedLM, last: torch.Tensor, slots: torch.Tensor, kernels: Kernels = DEFAULT
) -> torch.Tensor:
    """Return the logits of the MLM head at the slots alone: (B * K, V), or a padded V.

    Args:
        last: (B, L, D), after the last layer.
        slots: (B, K) int64, positions in the row.
    """
    head: Any = mlm_head(model)
    at_slots = _at(last, slots).flatten(0, 1)
    decoder = head.predictions.decoder
    further = -decoder.out_features % _VOCABULARY_MULTIPLE if kernels.pad else 0
    if not further:
        logits: torch.Tensor = head(at_slots)
        return logits
    weight = F.pad(decoder.weight, (0, 0, 0, further))
    bias = F.pad(decoder.bias, (0, further), value=_NEVER)
    return F.linear(head.predictions.transform(at_slots), weight, bias)


def _at(state: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """(B, L, D) -> (B, K, D)."""
    return state.gather(1, slots[..., None].expand(-1, -1, state.shape[-1]))


def _self_attention(
    module: Any,
    asked: torch.Tensor,
    state: torch.Tensor,
    mask: torch.Tensor | None,
    kernels: Kernels,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Return the context of the states asked for, and the queries and keys it came from."""
    this = module.self
    size = this.attention_head_size
    pads = kernels.pad and isinstance(this.query, nn.Linear)  # 8-bit maps are as they are
    width = size + -size % _HEAD_MULTIPLE if pads else size
    query, key, value = (
        _heads(projection, of, this.num_attention_heads, width)
        for projection, of in ((this.query, asked), (this.key, state), (this.value, state))
    )
    dropout = this.dropout.p if this.training else 0.0
    context = attend(query, key, value, mask, size**-0.5, dropout, kernels.attention)
    context = context.transpose(1, 2)[..., :size].flatten(2)
    return context, (query[..., :size], key[..., :size])


def _heads(projection: Any, state: torch.Tensor, num_heads: int, width: int) -> torch.Tensor:
    """(B, L, D) -> (B, H, L, width): project, with columns of zeros up to that width."""
    if num_heads * width == projection.out_features:
        projected: torch.Tensor = projection(state)
    else:
        weight = _with_zero_rows(projection.weight, num_heads, width)
        projected = F.linear(state, weight, _with_zero_rows(projection.bias, num_heads, width))
    return projected.view(*state.shape[:2], num_heads, width).transpose(1, 2)


def _with_zero_rows(weight: torch.Tensor, num_heads: int, width: int) -> torch.Tensor:
    """(H * d, ...) -> (H * width, ...)."""
    per_head = weight.view(num_heads, -1, *weight.shape[1:])
    below = width - per_head.shape[1]
    return F.pad(per_head, (*[0, 0] * (weight.ndim - 1), 0, below)).flatten(0, 1)
