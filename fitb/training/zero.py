"""DeepSpeed, filled in: its configuration, its process group, what this machine can train in.

fitb owns batch sizes, learning rate, clipping and precision and writes them into the DeepSpeed
configuration; a file that sets them too is refused.
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

from fitb.base.errors import ConfigError, SystemFault
from fitb.base.rendezvous import join
from fitb.base.world import World
from fitb.config import Config
from fitb.config.ds_config import read_ds_config

_SETTLE_S = 0.1
# The watch ends a job that hangs. A timeout would end one that was suspended in a collective for
# longer than that; the milliseconds of this one still fit into 31 bits.
_COLLECTIVE_LIMIT = timedelta(days=24)


def deepspeed_config(config: Config, world: World) -> dict[str, Any]:
    """Read a file of ds_configs/ and fill in what fitb owns.

    Raises: ConfigError where the file is not there, is no such file, or sets a number of fitb's.
    """
    filled = read_ds_config(config.ds_config)
    zero = filled["zero_optimization"]
    filled["train_micro_batch_size_per_gpu"] = config.micro_batch
    filled["gradient_accumulation_steps"] = config.grad_accum(world.size)
    filled["gradient_clipping"] = config.optim.clip_norm
    filled["fp16"] = {**filled.get("fp16", {}), "enabled": config.precision == "fp16"}
    filled["bf16"] = {
        **filled.get("bf16", {}),
        "enabled": config.precision == "bf16",
        "check_grad_overflow": False,
    }
    filled["steps_per_print"] = 2**31 - 1
    filled["timers"] = {"throughput": {"enabled": False}}  # it would wait before each micro-batch
    if ends_steps(filled):
        zero["compute_grad_norm"], filled["gradient_clipping"] = False, 0.0
        filled["gradient_accumulation_steps"] = 1
    return filled


def ends_steps(filled: dict[str, Any]) -> bool:
    """Whether fitb adds up micro-batches, reduces once, and takes the norm of the gradients.

    DeepSpeed would reduce after every micro-batch in ZeRO 2, and ask the device for norms up to
    four times a step. It lets go of both in ZeRO 2, and in ZeRO 1 unless it keeps bf16 weights with
    fp32 gradients; never where the optimiser is on the host.
    """
    zero = filled["zero_optimization"]
    stage, offloads = zero["stage"], "offload_optimizer" in zero
    return not offloads and (stage == 2 or (stage == 1 and not filled["bf16"]["enabled"]))


def start_distributed(config: Config, world: World) -> torch.device:
    """Join the process group that the environment describes and return this rank's device.

    Raises: ConfigError and SystemFault for what can be known before any process waits for another.
    """
    config.grad_accum(world.size)
    deepspeed_config(config, world)
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found none
    from deepspeed import comm, ops
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger as deepspeed_logger

    # On hosts without GPUs DeepSpeed compiles a collective that inference alone calls, under a lock
    # in the home directory. A rank killed at that moment leaves the lock, and every later start
    # waits for it. Nothing that trains needs a compiled operator: let it know of none.
    ops.__compatible_ops__ = {}
    deepspeed_logger.setLevel(logging.WARNING)
    # DeepSpeed calls what torch 2.13 has renamed; nobody who trains can do anything about it.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor. is deprecated", FutureWarning)
    check_precision(config.precision)
    _check_with_deepspeed(config, world)

    if world.size > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"rank {world.rank} of {world.size} does not know where rank 0 is: MASTER_ADDR is not"
            " set; start with slurm/distill.sh, launch.distill or torchrun"
        )
    port = 29500 if world.size > 1 else 0  # any: runs of one process share a host
    for name, value in world.env("127.0.0.1", port).items():
        os.environ.setdefault(name, value)
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(world.local_rank)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection with every other rank
    if not dist.is_initialized():
        backend = accelerator.communication_backend_name()
        join(world, backend, _COLLECTIVE_LIMIT)
        comm.init_distributed(dist_backend=backend, verbose=False)  # takes the group as it is
    return torch.device(accelerator.current_device_name())


def _check_with_deepspeed(config: Config, world: World) -> None:
    """Raise ConfigError where DeepSpeed does not take a value of its own in the file."""
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(deepspeed_config(config, world))
    except Exception as error:  # of whatever kind: nothing but the file was looked at
        said = " ".join(str(error).split())
        raise ConfigError(f"DeepSpeed refuses ds_config={config.ds_config!r}: {said}") from error


def leave_distributed() -> None:
    """Leave the process group; every rank, at the end.

    gloo's threads free the tensors of the last collective after it was reported done. They need the
    interpreter for it, and abort a process whose interpreter is ending: they are given a moment.
    """
    if dist.is_initialized():
        time.sleep(_SETTLE_S)
        dist.destroy_process_group()


def check_precision(precision: str) -> None:
    """Raise SystemFault where this machine cannot train in `precision`."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    supported = {"fp16": accelerator.is_fp16_supported, "bf16": accelerator.is_bf16_supported}
    if precision in supported and not supported[precision]():
        others = "bf16 or fp32" if precision == "fp16" else "fp32"
        error = SystemFault(
            f"precision={precision} is not supported by this machine's {accelerator.device_name()}"
            f" device; use --precision {others.replace(' or ', ' or --precision ')}"
        )
        error.restart_helps = False
        raise error
