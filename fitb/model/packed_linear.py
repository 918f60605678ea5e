"""Faster linear layers for a frozen teacher, whose weights can be packed or quantised once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import BertForMaskedLM

from fitb.base.errors import ConfigError, UnfitMachine
from fitb.model.load import encoder

_E4M3_MAX = 448.0  # largest number of torch.float8_e4m3fn
_FP8_CAPABILITY = (8, 9)  # Ada and Hopper
_FP8_MULTIPLE = 16  # rows and columns of a matrix


class PackedLinear(nn.Module):
    """Linear layer through oneDNN with packed weights, optionally fused with GELU.

    torch sends fp32 matmuls to MKL, which on AMD processors runs at half of oneDNN's speed; the
    fused GELU saves a pass over memory.

    Args:
        linear: layer to replace, on the CPU.
        gelu: whether to apply the exact GELU to the output.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        self.out_features = linear.out_features
        self._activation = ("gelu", "none") if gelu else ("none", "")
        with torch.no_grad():
            self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self._bias = linear.bias.detach()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        name, algorithm = self._activation
        outputs: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._weight, self._bias, name, [], algorithm
        )
        return outputs


class Float8Linear(nn.Module):
    """Linear layer in 8-bit floats (e4m3) with a scale per output and a dynamic one per token.

    Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433.

    Args:
        linear: layer to replace.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        weight, scale = _to_float8(linear.weight.detach())
        self.weight = nn.Buffer(weight, persistent=False)
        self.scale = nn.Buffer(scale.mT, persistent=False)
        self.bias = nn.Buffer(linear.bias.detach(), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rounded, scale = _to_float8(inputs.flatten(0, -2))
        # Not all GPU kernels with a scale per row can write anything but bf16.
        dtype = torch.bfloat16 if inputs.is_cuda else inputs.dtype
        outputs: torch.Tensor = torch._scaled_mm(
            rounded,
            self.weight.mT,
            scale_a=scale,
            scale_b=self.scale,
            out_dtype=dtype,
            use_fast_accum=True,  # Hopper is slow without; its sums are of 14 bits then
        )
        outputs = outputs.to(inputs.dtype) + self.bias
        return outputs.view(*inputs.shape[:-1], self.out_features)


def _to_float8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, k) float -> (n, k) float8_e4m3fn and scales (n, 1) fp32."""
    values = values.float()
    scale = (values.abs().amax(1, keepdim=True) / _E4M3_MAX).clamp(min=1e-12)
    return (values / scale).to(torch.float8_e4m3fn), scale


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch supports oneDNN matmuls of this dtype on this device."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or not available or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    halves = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }
    return dtype not in halves or bool(getattr(torch.ops.mkldnn, halves[dtype])())


def pack(model: BertForMaskedLM) -> None:
    """Replace the linear layers of a frozen BERT on the CPU by packed ones, in place.

    Its precision is kept, and Float8Linear layers are not replaced.
    """
    gelu = model.config.hidden_act == "gelu"
    bert: Any = encoder(model)
    for layer in bert.encoder.layer:
        dense = layer.intermediate.dense
        if gelu and isinstance(dense, nn.Linear):  # before _replace does
            layer.intermediate = PackedLinear(dense, gelu=True)
    _replace(model, PackedLinear)


def to_float8(model: BertForMaskedLM, device: torch.device) -> None:
    """Quantise the encoder of a frozen BERT to 8-bit floats, in place.

    The MLM head keeps its precision: its logits are the student's target.

    Raises:
        UnfitMachine: the GPU has no 8-bit matmuls.
        ConfigError: a matrix size is not a multiple of 16, as 8-bit matmuls require.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _FP8_CAPABILITY:
        raise UnfitMachine(
            f"model.teacher_precision=fp8 needs a GPU of compute capability 8.9 or more; this is"
            f" {torch.cuda.get_device_name(device)}; leave it at `same`"
        )
    sizes = model.config.hidden_size, model.config.intermediate_size
    if any(size % _FP8_MULTIPLE for size in sizes):
        raise ConfigError(
            f"model.teacher_precision=fp8 needs widths that are multiples of {_FP8_MULTIPLE}; this"
            f" teacher has {sizes[0]} and {sizes[1]}; leave it at `same`"
        )
    bert: Any = encoder(model)
    _replace(bert.encoder, Float8Linear)


def _replace(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.Linear):
            module.set_submodule(name, make(child))
