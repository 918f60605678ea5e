"""The device that a rank computes on, and what libraries read from the environment."""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from fitb.base.errors import UnfitMachine
from fitb.base.world import World
from fitb.cluster.slurm import num_gpus
from fitb.training.collectives import on_all

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_GPU_NAME = re.compile(r"\d+$|GPU-|MIG-")


def prepare_environment(env: MutableMapping[str, str], deterministic: bool = False) -> None:
    """Set what NCCL and cuBLAS read at their first call, unless a user has set it.

    Hangs are ended by the watch, which leaves stacks, so NCCL's monitor, which aborts the process
    after 8 minutes, is off.

    Args:
        env: environment of this process.
        deterministic: `speed.deterministic`.
    """
    env.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    if deterministic:
        env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for


def compile_threads(env: Mapping[str, str]) -> int:
    """Return how many workers torch.compile may start on this rank: as many as it has cores.

    By default it starts up to 32 on each rank, and those of 8 ranks exceed the memory of a host.
    """
    cores, here = len(os.sched_getaffinity(0)), env.get("LOCAL_WORLD_SIZE")
    if here is None and "SLURM_CPUS_PER_TASK" in env:
        return min(32, int(env["SLURM_CPUS_PER_TASK"]))
    first = re.match(r"\d+", here or env.get("SLURM_STEP_TASKS_PER_NODE", ""))  # as in 4(x2),3
    return min(32, max(1, cores // int(first[0] if first else 1)))


def device_index(world: World, num_visible: int) -> int:
    """Return the number of this rank's device among the visible ones.

    Slurm shows a task all GPUs of its host, or, with --gpus-per-task or --gpu-bind, only its own,
    which then has number 0 on every rank.

    Raises: UnfitMachine if the visible devices are neither one nor enough.
    """
    if world.local_rank < num_visible:
        return world.local_rank
    if num_visible == 1:
        return 0
    raise UnfitMachine(
        f"rank {world.rank} is task {world.local_rank} of {socket.gethostname()}, counted from 0,"
        f" and sees {num_visible} GPUs; expected its own or one per task; start as many tasks as a"
        " host has GPUs (--ntasks-per-node), and export SLURM_GPU_BIND=none"
    )


def bind(world: World, accelerator: Any, env: MutableMapping[str, str]) -> None:
    """Select this rank's device, for torch and for DeepSpeed, which reads LOCAL_RANK.

    Args:
        world: this rank.
        accelerator: DeepSpeed's accelerator.
        env: environment of this process.
    Raises: what `device_index` raises.
    """
    if accelerator.device_name() == "cpu":
        return
    index = device_index(world, accelerator.device_count())
    env["LOCAL_RANK"] = str(index)
    accelerator.set_device(index)
    if not all(name.strip().isdecimal() for name in env.get(_VISIBLE, "0").split(",")):
        # DeepSpeed asks NVML about free memory by the numbers of this variable, and fails on the
        # names of MIG slices and GPUs. Without NVML it asks torch.
        from deepspeed.accelerator import cuda_accelerator

        cuda_accelerator.pynvml = None


def check_not_shared(world: World, device: torch.device) -> None:
    """Raise UnfitMachine, on every rank, if two ranks compute on one GPU. Collective."""
    if device.type != "cuda" or world.size == 1:
        return
    group = dist.new_group(backend="gloo")  # NCCL would fail first, in other words
    mine = socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)
    owners = on_all(lambda: mine, world, group)
    dist.destroy_process_group(group)
    shared = first_shared(owners)
    if shared:
        first, second = shared
        raise UnfitMachine(
            f"ranks {first} and {second} compute on one GPU, {owners[first][1]} of"
            f" {owners[first][0]}; expected one GPU per rank; start as many tasks as a host has"
            " GPUs (--ntasks-per-node), and one on a host whose GPU is divided by MIG"
        )


def first_shared(owners: Sequence[Any]) -> tuple[int, int] | None:
    """Return the first two places with an equal entry, or None."""
    seen: dict[Any, int] = {}
    for rank, owner in enumerate(owners):
        if owner in seen:
            return seen[owner], rank
        seen[owner] = rank
    return None


def num_promised(env: Mapping[str, str]) -> int:
    """Return how many GPUs this process should see: those of CUDA_VISIBLE_DEVICES, else Slurm's.

    Of several MIG slices CUDA shows one.
    """
    if _VISIBLE not in env:
        return num_gpus(env)
    names = [name.strip() for name in env[_VISIBLE].split(",")]
    visible = list(itertools.takewhile(_GPU_NAME.match, names))  # others, as NoDevFiles, end it
    slices = sum(name.startswith("MIG-") for name in visible)
    return len(visible) - max(0, slices - 1)
