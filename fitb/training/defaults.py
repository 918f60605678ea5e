"""Precision and micro-batch where a configuration leaves them to the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fitb.config import Config, DataConfig
from fitb.config.schema import CPU_ROWS, GPU_TOKENS
from fitb.rundir.writer import recorded
from fitb.shards.shard_set import length_of

CPUINFO = Path("/proc/cpuinfo")
SMALL_GPU_TOKENS = 8_192  # of a micro-batch
_LARGE_GPU_BYTES = 30e9
_BF16_CAPABILITY = (8, 0)  # Ampere; earlier GPUs emulate it
_FP16_CAPABILITY = (7, 0)  # Volta, the first with tensor cores


def resolved(config: Config, device: torch.device) -> Config:
    """Return a configuration with precision and micro_batch decided.

    A run that goes on keeps its own, which its config.yaml records.

    Args:
        config: configuration of a run.
        device: device of rank 0.
    Raises: ConfigError if the run's config.yaml is damaged; DataError if the length of rows is
        needed, and there is no shard set.
    """
    known = (config.run_dir and recorded(Path(config.run_dir))) or {}
    precision = config.precision
    if precision == "auto":
        precision = known.get("precision", "auto")
    if precision == "auto":
        precision = fastest_precision(device)
    micro_batch = config.micro_batch or known.get("micro_batch")
    if micro_batch is None:
        micro_batch = rows_at_once(device, config.data)
    return replace(config, precision=precision, micro_batch=micro_batch)


def fastest_precision(device: torch.device) -> Any:
    """Return bf16 if a device is made for it, else fp16 on a GPU that is made for that, else fp32.

    On CPUs with avx512_bf16 alone, MKL's fp32 is faster on Intel's, and bf16 on AMD's
    (docs/experiments.md).
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _BF16_CAPABILITY:
            return "bf16"
        return "fp16" if capability >= _FP16_CAPABILITY else "fp32"
    cpu = CPUINFO.read_text() if CPUINFO.exists() else ""
    fast = "amx_bf16" in cpu or ("avx512_bf16" in cpu and "AuthenticAMD" in cpu)
    return "bf16" if fast else "fp32"


def rows_at_once(device: torch.device, data: DataConfig) -> int:
    """Return the rows of a micro-batch that a device is busy with; a number of tokens on a GPU."""
    if device.type != "cuda":
        return CPU_ROWS
    large = torch.cuda.get_device_properties(device).total_memory >= _LARGE_GPU_BYTES
    length = length_of(data.shards, data.fetch_deadline_s)
    return max(1, (GPU_TOKENS if large else SMALL_GPU_TOKENS) // length)
