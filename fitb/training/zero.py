"""DeepSpeed setup: its configuration, its process group, and the supported precisions.

fitb owns batch sizes, learning rate, clipping and precision and writes them into the DeepSpeed
configuration; a file that sets them too is an error.
"""

from __future__ import annotations

import logging
import os
import resource
import time
import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fitb.base.errors import ConfigError, UnfitMachine
from fitb.base.rendezvous import join
from fitb.base.world import World
from fitb.config import Config
from fitb.config.ds_config import read_ds_config
from fitb.training import devices

_SETTLE_S = 0.1
# Hangs are ended by the watch. A timeout here would also end a job that was suspended for longer
# inside a collective. In milliseconds this one still fits into 31 bits.
COLLECTIVE_LIMIT = timedelta(days=24)


def deepspeed_config(config: Config, world: World) -> dict[str, Any]:
    """Read a DeepSpeed configuration and fill in the values that fitb owns.

    Raises: ConfigError if the file is missing, malformed, or sets a value that fitb owns.
    """
    filled = read_ds_config(config.ds_config)
    zero = filled["zero_optimization"]
    filled["train_micro_batch_size_per_gpu"] = config.micro_batch or 1  # decided later
    filled["gradient_accumulation_steps"] = config.grad_accum(world.size)
    filled["gradient_clipping"] = config.optim.clip_norm
    filled["fp16"] = {**filled.get("fp16", {}), "enabled": config.precision == "fp16"}
    bf16 = {"enabled": config.precision == "bf16", "check_grad_overflow": False}
    filled["bf16"] = {**filled.get("bf16", {}), **bf16}
    filled["steps_per_print"] = 2**31 - 1
    filled["timers"] = {"throughput": {"enabled": False}}  # it synchronises at each micro-batch
    if ends_steps(filled):
        zero["compute_grad_norm"], filled["gradient_clipping"] = False, 0.0
        filled["gradient_accumulation_steps"] = 1
    return filled


def ends_steps(filled: dict[str, Any]) -> bool:
    """Return whether fitb accumulates micro-batches, reduces once per step, and computes the norm.

    DeepSpeed reduces after every micro-batch in ZeRO 2, and synchronises for norms up to four times
    a step. fitb can take over both in ZeRO 2, and in ZeRO 1 except with bf16 weights and fp32
    gradients, but not with an offloaded optimiser.
    """
    zero = filled["zero_optimization"]
    stage, offloads = zero["stage"], "offload_optimizer" in zero
    return not offloads and (stage == 2 or (stage == 1 and not filled["bf16"]["enabled"]))


def start_distributed(config: Config, world: World) -> torch.device:
    """Join the process group of the environment and return this rank's device. Collective.

    Raises: ConfigError, UnfitMachine; before any rank waits for another, unless two share a GPU.
    """
    devices.prepare_environment(os.environ, config.speed.deterministic)
    config.grad_accum(world.size)
    deepspeed_config(config, world)
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # avoids a warning
    from deepspeed import comm, ops
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger as deepspeed_logger

    # Without GPUs DeepSpeed compiles a collective that only inference uses, under a lock file in
    # the home directory. A rank killed meanwhile leaves the lock, and every later start waits for
    # it. Training needs no compiled operator, so none is declared compatible.
    ops.__compatible_ops__ = {}
    deepspeed_logger.setLevel(logging.WARNING)
    # DeepSpeed calls a function that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor. is deprecated", FutureWarning)
    check_precision(config.precision)
    _check_with_deepspeed(config, world)

    if world.size > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"rank {world.rank} of {world.size}: MASTER_ADDR, the host of rank 0, is not set; start"
            " with slurm/distill.sh, launch.distill or torchrun"
        )
    port = 29500 if world.size > 1 else 0  # single-process runs may share a host
    for name, value in world.env("127.0.0.1", port).items():
        os.environ.setdefault(name, value)
    accelerator = get_accelerator()
    devices.bind(world, accelerator, os.environ)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one socket per other rank
    if not dist.is_initialized():
        backend = accelerator.communication_backend_name()
        join(world, backend, COLLECTIVE_LIMIT)
        comm.init_distributed(dist_backend=backend, verbose=False)  # adopts the existing group
    device = torch.device(accelerator.current_device_name())
    devices.check_not_shared(world, device)
    return device


def _check_with_deepspeed(config: Config, world: World) -> None:
    """Raise ConfigError if DeepSpeed rejects one of its own values in the file."""
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(deepspeed_config(config, world))
    except Exception as error:  # of any type: only the file can be the cause
        said = " ".join(str(error).split())
        raise ConfigError(f"DeepSpeed refuses ds_config={config.ds_config!r}: {said}") from error


def leave_distributed() -> None:
    """Destroy the process group, on every rank, at the end.

    gloo's threads free the tensors of the last collective after it completes. They need the GIL for
    that, and abort the process if the interpreter is already finalising, so this waits a moment.
    """
    if dist.is_initialized():
        time.sleep(_SETTLE_S)
        dist.destroy_process_group()


def check_precision(precision: str) -> None:
    """Raise UnfitMachine if this machine does not support `precision`."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    supported = {"fp16": accelerator.is_fp16_supported, "bf16": accelerator.is_bf16_supported}
    if precision in supported and not supported[precision]():
        others = "--precision bf16 or " if precision == "fp16" else ""
        raise UnfitMachine(
            f"precision={precision} is not supported by this machine's {accelerator.device_name()}"
            f" device; use {others}--precision fp32"
        )
