"""What a device can do at most, measured: the products and copies that a figure is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fitb.bench.measure import seconds
from fitb.model.frozen import can_pack

_SIZES = {"cuda": 8192, "cpu": 2048}  # of a square matrix
_COPY_MB = {"cuda": 4096, "cpu": 256}
_REPEATS = 10


def best_seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return the shortest time of a call on a device: a ceiling is what is possible."""
    return min(seconds(work, device) for _ in range(_REPEATS))


def product_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """Return the speed of a large matrix product, in 10^12 operations a second.

    On a CPU the better of torch's own and oneDNN's.
    """
    size = _SIZES[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    ways: list[Callable[[], Any]] = [lambda: a @ b]
    if can_pack(device, dtype):
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    with torch.no_grad():
        return max(2 * size**3 / best_seconds(way, device) / 1e12 for way in ways)


def copy_gb_per_s(device: torch.device) -> float:
    """Return the speed of a large copy, bytes read and written, in 10^9 bytes a second."""
    source = torch.ones(_COPY_MB[device.type] * 250_000, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device) / 1e9
