"""Latency and bandwidth of the collectives between ranks: `fitb bench comm`.

Under srun or torchrun it measures the network of the job; alone it starts local processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from fitb.base.world import World
from fitb.bench.bench_config import CommBenchConfig
from fitb.bench.processes import in_ranks
from fitb.bench.timing import machine, seconds, spread
from fitb.config import Config
from fitb.training.execution import DTYPES
from fitb.training.zero import leave_distributed, start_distributed


def bench(config: CommBenchConfig) -> dict[str, Any]:
    """Measure on every rank; return the result of rank 0."""
    return in_ranks(config, "comm", config.processes, _measure)


def _measure(config: CommBenchConfig, world: World) -> dict[str, Any]:
    run = Config(run_dir="", precision="fp32", micro_batch=1, global_batch=world.size)
    device = start_distributed(run, world)
    number = torch.zeros(1, dtype=torch.float64, device=device)  # as gradient clipping needs
    latency = _times(lambda: dist.all_reduce(number), config.repeats, device)
    row: dict[str, Any] = {
        "bench": "comm",
        **machine(),
        "processes": world.size,
        "backend": dist.get_backend(),
        "precision": config.precision,
        "latency_us": spread([1e6 * s for s in latency], 1),
    }
    for mb in config.mb:
        row[f"{mb:g}_mb"] = {
            name: {
                "ms": spread([1e3 * s for s in times]),
                "bus_gb_per_s": round(_bus_bytes(name, mb, world.size) / min(times) / 1e9, 3),
            }
            for name, times in _collectives(config, mb, world, device).items()
        }
    leave_distributed()
    return row


def _collectives(
    config: CommBenchConfig, mb: float, world: World, device: torch.device
) -> dict[str, list[float]]:
    dtype = DTYPES[config.precision]
    size = max(1, int(mb * 1e6 / dtype.itemsize / world.size))
    whole = torch.zeros(size * world.size, device=device, dtype=dtype)
    share = torch.zeros(size, device=device, dtype=dtype)
    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, share),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(share, whole),
    }
    return {name: _times(call, config.repeats, device) for name, call in calls.items()}


def _times(call: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    call()
    times = []
    for _ in range(repeats):
        dist.barrier()
        times.append(seconds(call, device))
    return times


def _bus_bytes(name: str, mb: float, num_ranks: int) -> float:
    """Bytes over each rank's link: (n - 1) / n of the message, twice that for an all-reduce.

    Bus bandwidth as in https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
    """
    return (2 if name == "all_reduce" else 1) * mb * 1e6 * (num_ranks - 1) / num_ranks
