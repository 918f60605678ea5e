"""Forward pass of a BERT that returns chosen hidden states, queries, keys and values.

It uses the modules and weights of transformers, but calls them itself, so that states are returned
without hooks, no mask is inspected on the host, and torch.compile sees one graph.

Legend: B rows, L length, K masked positions (slots) of a row, D hidden, H heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertForMaskedLM

from fitb.model.attention import HEAD_MULTIPLE, attend
from fitb.model.load import encoder, mlm_head

_VOCABULARY_MULTIPLE = 64  # of vocabulary sizes that tensor cores' kernels are fast at
_NEVER = torch.finfo(torch.float16).min  # a logit of probability 0 in every precision


@dataclass(frozen=True)
class Kernels:
    """Execution options of a forward pass, which change results by rounding only.

    Args:
        attention: sdpa or eager, as in `attend`.
        pad: whether to pad head sizes to a multiple of 8 and the vocabulary to a multiple of 64,
            for GPU kernels. Padding weights are zero, padding logits so low that softmax gives 0.
    """

    attention: str = "sdpa"
    pad: bool = False


DEFAULT = Kernels()


@dataclass(frozen=True)
class Encoded:
    """Outputs of an encoder for a batch.

    Args:
        last: (B, L, D), states after the last layer; (B, K, D) if slots were given.
        hidden: (B, L, D) each: the embeddings, then the requested layers in the requested order.
        heads: queries, keys and values, (B, H, L, d) each, of these layers.
    """

    last: torch.Tensor
    hidden: tuple[torch.Tensor, ...]
    heads: tuple[tuple[torch.Tensor, ...], ...]


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
        model: the model; dropout is on in train mode, as in transformers.
        input_ids: (B, L) int64, token ids.
        real: (B, L) bool, false on padding; None if there is none, which is faster.
        layers: numbers of the layers whose states are returned, from 1, in any order; not the last
            one if slots are given.
        slots: (B, K) int64, positions at which the last layer is computed; None: all. Saves a fifth
            of the work of four layers.
        kernels: execution options.
    """
    bert: Any = encoder(model)
    mask = None if real is None else real[:, None, None, :]
    state = bert.embeddings(input_ids)
    hidden, heads = {0: state}, {}
    for number, layer in enumerate(bert.encoder.layer, 1):
        queried = state if slots is None or number < len(bert.encoder.layer) else _at(state, slots)
        context, projected = _self_attention(layer.attention, queried, state, mask, kernels)
        between = layer.attention.output(context, queried)
        state = layer.output(layer.intermediate(between), between)
        if number in layers:  # other states are freed
            hidden[number], heads[number] = state, projected
    return Encoded(
        state,
        tuple(hidden[number] for number in (0, *layers)),
        tuple(heads[number] for number in layers),
    )


def logits_at(
    model: BertForMaskedLM, last: torch.Tensor, slots: torch.Tensor, kernels: Kernels = DEFAULT
) -> torch.Tensor:
    """Return the logits of the MLM head at masked positions only: (B * K, V), or a padded V.

    Args:
        model: the model.
        last: (B, L, D), states after the last layer.
        slots: (B, K) int64, masked positions in the row.
        kernels: execution options.
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
    """(B, L, D) -> (B, K, D): select positions."""
    return state.gather(1, slots[..., None].expand(-1, -1, state.shape[-1]))


def _self_attention(
    module: Any,
    queried: torch.Tensor,
    state: torch.Tensor,
    mask: torch.Tensor | None,
    kernels: Kernels,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return the context of the queried states, and the queries, keys and values."""
    this = module.self
    size = this.attention_head_size
    pads = kernels.pad and isinstance(this.query, nn.Linear)  # not 8-bit or packed maps
    width = size + -size % HEAD_MULTIPLE if pads else size
    query, key, value = (
        _heads(projection, of, this.num_attention_heads, width)
        for projection, of in ((this.query, queried), (this.key, state), (this.value, state))
    )
    dropout = this.dropout.p if this.training else 0.0
    context = attend(query, key, value, mask, size**-0.5, dropout, kernels.attention)
    context = context.transpose(1, 2)[..., :size].flatten(2)
    return context, tuple(heads[..., :size] for heads in (query, key, value))


def _heads(projection: Any, state: torch.Tensor, num_heads: int, width: int) -> torch.Tensor:
    """(B, L, D) -> (B, H, L, width): project, and pad each head with zeros to `width`."""
    if num_heads * width == projection.out_features:
        projected: torch.Tensor = projection(state)
    else:
        weight = _with_zero_rows(projection.weight, num_heads, width)
        projected = F.linear(state, weight, _with_zero_rows(projection.bias, num_heads, width))
    return projected.view(*state.shape[:2], num_heads, width).transpose(1, 2)


def _with_zero_rows(weight: torch.Tensor, num_heads: int, width: int) -> torch.Tensor:
    """(H * d, ...) -> (H * width, ...): pad the weights of each head with zero rows."""
    per_head = weight.view(num_heads, -1, *weight.shape[1:])
    below = width - per_head.shape[1]
    return F.pad(per_head, (*[0, 0] * (weight.ndim - 1), 0, below)).flatten(0, 1)
