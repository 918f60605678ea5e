"""What a device can do at most, measured: the products and copies that a figure is held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from fitb.config import Config, Geometry
from fitb.data.masking import num_slots
from fitb.distill.objective import Objective, Tap
from fitb.model.flops import TokenFlops, work_per_token
from fitb.model.frozen import can_pack
from fitb.train.execution import DTYPES

_SIZES = {"cuda": 8192, "cpu": 2048}  # of a square matrix
_LEAST_SIZE, _LONG_S = 256, 0.05
_COPY_MB = {"cuda": 4096, "cpu": 256}


def best_seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the shortest time of a call on a device: a ceiling is what is possible."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin_s)
    return min(times)


def product_tflops(dtype: torch.dtype, device: torch.device, repeats: int = 10) -> float:
    """Return the speed of a large matrix product, in 10^12 operations a second.

    On a CPU the better of torch's own and oneDNN's. Where a small product takes long already, as
    in fp16 on a processor that is not made for it, no large one is tried.
    """
    size = _LEAST_SIZE
    while True:
        ways = _products(size, dtype, device)
        with torch.no_grad():
            took_s = min(best_seconds(way, device, repeats=1) for way in ways)
            if size == _SIZES[device.type] or took_s > _LONG_S:
                return 2 * size**3 / min(best_seconds(w, device, repeats) for w in ways) / 1e12
        size *= 2


def _products(size: int, dtype: torch.dtype, device: torch.device) -> list[Callable[[], Any]]:
    draw = torch.Generator(device).manual_seed(0)  # the run's own random state stays as it is
    a, b = (torch.randn(size, size, device=device, generator=draw).to(dtype) for _ in range(2))
    ways: list[Callable[[], Any]] = [lambda: a @ b]
    if can_pack(device, dtype):
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return ways


def copy_gb_per_s(device: torch.device, repeats: int = 10) -> float:
    """Return the speed of a large copy, bytes read and written, in 10^9 bytes a second."""
    source = torch.ones(_COPY_MB[device.type] * 250_000, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device, repeats) / 1e9


def least_token_s(
    objective: Objective, teacher: Tap | None, config: Config, device: torch.device, length: int
) -> float:
    """Return the seconds that a token's products take this process at the ceiling: MFU 1.

    Processes that share a CPU measure at the same time, each its part.
    """
    work = work_of(objective, teacher, config, length)
    return work.total / 1e12 / product_tflops(DTYPES[config.precision], device, repeats=3)


def work_of(objective: Objective, teacher: Tap | None, config: Config, length: int) -> TokenFlops:
    """Return the operations of a token in rows of this length."""
    return work_per_token(
        _geometry(objective.student),
        _geometry(teacher) if teacher is not None else None,
        length=length,
        vocabulary=objective.student.model.config.vocab_size,
        slots_per_token=num_slots(length, config.mask) / length,
        teacher_head=config.objective.logits > 0,
    )


def _geometry(tap: Tap) -> Geometry:
    config = tap.model.config
    return Geometry(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
    )
