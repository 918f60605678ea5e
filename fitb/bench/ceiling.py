"""Measured peak matmul TFLOP/s and memory bandwidth, the ceilings of `fitb bench step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fitb.bench.timing import seconds
from fitb.model.packed_linear import can_pack

_SIZES = {"cuda": 8192, "cpu": 2048}  # of a square matrix
_LEAST_SIZE, _LONG_S = 256, 0.05
_COPY_MB = {"cuda": 4096, "cpu": 256}


def matmul_tflops(dtype: torch.dtype, device: torch.device, repeats: int = 10) -> float:
    """Return peak TFLOP/s of a square matmul, the best of `repeats`.

    On a CPU this is the better of torch's own kernel and oneDNN's. The size doubles until a matmul
    takes 50 ms, so that fp16 on a CPU without native support does not take minutes.
    """
    size = _LEAST_SIZE
    while True:
        ways = _matmuls(size, dtype, device)
        took_s = min(_best_s(way, device, repeats=1) for way in ways)
        if size == _SIZES[device.type] or took_s > _LONG_S:
            return 2 * size**3 / min(_best_s(way, device, repeats) for way in ways) / 1e12
        size *= 2


def copy_gb_per_s(device: torch.device, repeats: int = 10) -> float:
    """Return peak memory bandwidth in GB/s (1e9), read plus written, of a large copy."""
    source = torch.ones(_COPY_MB[device.type] * 250_000, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_s(lambda: target.copy_(source), device, repeats) / 1e9


def _best_s(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    with torch.no_grad():
        return min(seconds(work, device) for _ in range(repeats))


def _matmuls(size: int, dtype: torch.dtype, device: torch.device) -> list[Callable[[], Any]]:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    ways: list[Callable[[], Any]] = [lambda: a @ b]
    if can_pack(device, dtype):
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return ways
