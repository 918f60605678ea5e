"""Kernels, speed and memory of compiled steps on a GPU: most of it is written down, not judged."""

from __future__ import annotations

from typing import Any

import torch
from setting import HALVES, Setting

from fitb.bench.ceiling import matmul_tflops
from fitb.bench.kernels import kernels_of
from fitb.model.peaks import peak_tflops
from fitb.training.execution import DTYPES
from fitb.training.setup import work_of

FUSED = ("flash", "fmha", "cudnn", "efficient")  # in the names of fused attention kernels


def profile(at: Setting) -> dict[str, Any]:
    """Launches, waits and the slowest kernels of a compiled step; attention must be fused."""
    variant = at.variant("bf16", 256, compile=True, pad=True)
    variant.seconds(3)
    found = kernels_of(variant.next_update(), at.device)
    names = [kernel["name"].lower() for kernel in found["slowest"]]
    found["fp32_matmuls"] = [name for name in names if "sgemm" in name or "simt" in name]
    if not at.dry:
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiled_by

        with profiled_by(activities=[ProfilerActivity.CUDA]) as profiled:
            variant.seconds(1)
        kernels = {event.key.lower() for event in profiled.key_averages()}
        found["attention"] = [k[:80] for k in kernels if any(part in k for part in FUSED)]
        at.require("attention is fused", bool(found["attention"]))
    at.require("a step launches kernels", found["launches"] > 0)
    return found


def speed(at: Setting) -> dict[str, Any]:
    """Tokens per second, MFU and peak memory by precision, length and micro-batch."""
    found: dict[str, Any] = {}
    ceiling = {p: matmul_tflops(DTYPES[p], at.device) for p in HALVES[: 1 if at.dry else 2]}
    name = "cpu" if at.dry else torch.cuda.get_device_name()
    found["ceiling_tflops"] = {p: round(one, 1) for p, one in ceiling.items()}
    found["peak_tflops"] = None if at.dry else peak_tflops(name, "bf16")
    cases = [("bf16", 128, 256, 1), ("bf16", 512, 64, 1)]
    if not at.dry:
        cases[1:1] = [("fp16", 128, 256, 1)]
        cases += [("fp16", 512, 64, 1), ("bf16", 128, 32, 8), ("bf16", 128, 512, 1)]
    for precision, length, rows, grad_accum in cases:
        if not at.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        variant = at.variant(precision, rows, grad_accum, length=length, compile=True, pad=True)
        variant.seconds(3)
        steps = 1 if at.dry else max(3, 24 // grad_accum)
        tokens_per_s = variant.run.global_batch * length / variant.seconds(steps)
        work = work_of(variant.engine.objective, variant.engine.teacher, variant.run, length)
        memory_gb = 0.0 if at.dry else torch.cuda.max_memory_allocated() / 1e9
        found[f"{precision} {length} {rows} x {grad_accum}"] = {
            "tokens_per_s": round(tokens_per_s),
            "mfu": round(tokens_per_s * work.total / (ceiling[precision] * 1e12), 3),
            "memory_gb": round(memory_gb, 2),
        }
        at.require("the loss is finite", all(abs(loss) < 1e9 for loss in variant.losses))
        at.require("the step fits into 60 GB", memory_gb < 60)
        del variant
    return found
