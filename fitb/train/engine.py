"""DeepSpeed, filled in: a training step over micro-batches, and the state that a checkpoint keeps.

fitb owns batch sizes, learning rate, clipping and precision and writes them into the DeepSpeed
configuration; a file that sets them too is refused. The state is portable: whole fp32 tensors per
parameter, whatever the ZeRO stage and world size that made them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fitb import rng
from fitb.config import Config, OptimConfig
from fitb.data.batch import Batch
from fitb.distill.objective import Objective, Tap
from fitb.errors import ConfigError, SystemFault, TrainingError
from fitb.flags import resolve_resource
from fitb.world import World

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOMENTS = ("exp_avg", "exp_avg_sq")
_OWNED_BY_FITB = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
)


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of a step: a pure function, so there is no schedule to save.

    Args:
        step: 0-based.
        steps: of the whole run.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    left = max(0.0, (steps - step) / max(1, steps - config.warmup_steps))
    if config.schedule == "linear":
        return config.lr * left
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 - float(torch.cos(torch.tensor(torch.pi * left))))
    return config.lr


def deepspeed_config(config: Config, world: World) -> dict[str, Any]:
    """Read a file of ds_configs/ and fill in what fitb owns.

    Raises: ConfigError where the file is not there, is no JSON, or sets a number of fitb's.
    """
    path = resolve_resource(config.ds_config, "fitb.ds_configs", ".json")
    try:
        filled: dict[str, Any] = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(filled, dict) or not isinstance(filled.get("fp16", {}), dict):
        raise ConfigError(f"{path} is not a DeepSpeed configuration; expected a JSON object")
    twice = [key for key in _OWNED_BY_FITB if filled.get(key, "auto") != "auto"]
    twice += ["fp16.enabled"] if filled.get("fp16", {}).get("enabled", "auto") != "auto" else []
    if twice:
        raise ConfigError(
            f"{path} sets {', '.join(twice)}, which fitb owns; remove it there and use"
            " --global_batch, --micro_batch, --precision and --optim.* instead"
        )
    filled["train_micro_batch_size_per_gpu"] = config.micro_batch
    filled["gradient_accumulation_steps"] = config.grad_accum(world.size)
    filled["gradient_clipping"] = config.optim.clip_norm
    filled["fp16"] = {**filled.get("fp16", {}), "enabled": config.precision == "fp16"}
    filled["bf16"] = {"enabled": config.precision == "bf16"}
    filled["steps_per_print"] = 2**31 - 1
    return filled


def start_distributed(config: Config, world: World) -> torch.device:
    """Join the process group that the environment describes and return this rank's device.

    Raises: ConfigError and SystemFault for what can be known before any process waits for another.
    """
    config.grad_accum(world.size)
    deepspeed_config(config, world)
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns that it found none
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"  # of ninja
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger as deepspeed_logger

    deepspeed_logger.setLevel(logging.WARNING)
    check_precision(config.precision)

    if world.size > 1 and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"rank {world.rank} of {world.size} does not know where rank 0 is: MASTER_ADDR is not"
            " set; start with slurm/distill.sh, launch.distill or torchrun"
        )
    for name, value in world.env("127.0.0.1", 29500).items():
        os.environ.setdefault(name, value)
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(world.local_rank)
    if not dist.is_initialized():
        comm.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    return torch.device(accelerator.current_device_name())


def leave_distributed() -> None:
    """Leave the process group; every rank, at the end."""
    if dist.is_initialized():
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


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay, biases and LayerNorm do not."""
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    decayed = [p for _, p in trained if p.ndim >= 2]
    rest = [p for _, p in trained if p.ndim < 2]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class StepResult:
    """One optimiser update.

    Args:
        sums: (terms,) fp32, this rank's sum of each term.
        counts: (terms,) float64, over the whole global batch.
        coverage: (4,) float64, as Batch.coverage, over the whole global batch.
        grad_norm: global norm before clipping; None where the step was skipped.
        skipped: whether an fp16 overflow left the weights as they were.
        lr: learning rate used.
    """

    sums: torch.Tensor
    counts: torch.Tensor
    coverage: torch.Tensor
    grad_norm: float | None
    skipped: bool
    lr: float


class Engine:
    """The objective under DeepSpeed, and the teacher beside it.

    Args:
        objective: student and projections, fp32 weights.
        teacher: frozen; None trains plain MLM.
        config: of the run.
        world: this process's place.
        device: of this process.
    """

    def __init__(
        self,
        objective: Objective,
        teacher: Tap | None,
        config: Config,
        world: World,
        device: torch.device,
    ) -> None:
        import deepspeed

        self.objective, self.config, self.world, self.device = objective, config, world, device
        self.dtype = DTYPES[config.precision]
        self.teacher = teacher.to(device=device, dtype=self.dtype) if teacher else None
        self.weights = torch.tensor(objective.weights, dtype=torch.float64)
        optimizer = torch.optim.AdamW(
            parameter_groups(objective, config.optim.weight_decay),
            lr=config.optim.lr,
            betas=config.optim.betas,
            eps=config.optim.eps,
        )
        self._engine, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=deepspeed_config(config, world)
        )
        self._make_moments()

    def targets(self, batch: Batch) -> Any:
        """The teacher's features of a batch, without a graph; None where there is no teacher."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            return self.teacher(batch)

    def counts(self, micro_batches: Sequence[Batch]) -> torch.Tensor:
        """What this rank adds to the counts of a step: (terms + 4,) float64.

        First what each term is divided by, then what Batch.coverage counts.
        """
        total = torch.zeros(len(self.weights) + 4, dtype=torch.float64)
        for batch in micro_batches:
            total += torch.cat([self.objective.counts(batch), batch.coverage()])
        return total

    def train_step(
        self, step: int, micro_batches: Sequence[Batch], counts: torch.Tensor
    ) -> StepResult:
        """Accumulate over micro-batches and update the weights once.

        DeepSpeed averages gradients over ranks and, here not, over micro-batches; the loss that it
        is given is therefore the weighted sum over terms of sum / global count x ranks.

        Args:
            step: 0-based.
            micro_batches: this rank's share of the global batch.
            counts: (terms + 4,) float64 over the whole global batch.
        Raises: TrainingError where the loss scale is at its minimum or the loss is not finite.
        """
        self._engine.train()
        torch.manual_seed(int(rng.keyed(self.config.seed, step, self.world.rank) >> 1))
        lr = learning_rate(step, self.config.steps, self.config.optim)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        counts, coverage = counts[: len(self.weights)], counts[len(self.weights) :]
        scale = self.weights / counts.clamp(min=1) * self.world.size
        scale = scale.to(self.device, torch.float32)
        total = torch.zeros(len(scale), device=self.device)
        skipped_before = self._engine.skipped_steps
        try:
            for micro_batch in micro_batches:
                batch = micro_batch.to(self.device)
                sums = self._engine(batch, self.targets(batch))
                self._engine.backward((sums * scale).sum(), scale_wrt_gas=False)
                self._engine.step()
                total += sums.detach()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise TrainingError(
                f"step {step}: the loss scale is at its minimum and gradients still overflow;"
                " lower --optim.lr or use --precision bf16"
            ) from error
        skipped = self._engine.skipped_steps > skipped_before
        norm = None if skipped else float(self._engine.get_global_grad_norm())
        if norm is not None and not math.isfinite(norm):
            raise TrainingError(
                f"step {step}: the loss or its gradient is not finite (norm {norm}) in"
                f" {self.config.precision}; lower --optim.lr, or look at the rows of this step."
                " The last checkpoint is from before"
            )
        return StepResult(total, counts, coverage, norm, skipped, lr)

    @property
    def loss_scale(self) -> float:
        return float(getattr(self._engine.optimizer, "cur_scale", 1.0) or 1.0)

    @property
    def skipped_steps(self) -> int:
        return int(self._engine.skipped_steps)

    def _parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        return ((n, p) for n, p in self.objective.named_parameters() if p.requires_grad)

    def full_tensors(self, moments: bool = True) -> Iterable[tuple[str, torch.Tensor]]:
        """Yield every whole fp32 tensor of the state, on the CPU; all ranks must take part.

        Names are `param/NAME` and, with moments, `exp_avg/NAME` and `exp_avg_sq/NAME`.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._parameters():
            yield f"param/{name}", safe_get_full_fp32_param(parameter).cpu()
            for moment in MOMENTS if moments else ():
                full = safe_get_full_optimizer_state(parameter, moment)
                yield f"{moment}/{name}", full.cpu()

    def load_full_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what `full_tensors` yielded, into whatever partition this rank has."""
        for name, parameter in self._parameters():
            for kind in ("param", *MOMENTS):
                self._set(parameter, None if kind == "param" else kind, tensors[f"{kind}/{name}"])

    def scalars(self) -> dict[str, Any]:
        """The rest of the optimiser's state as plain numbers."""
        zero = self._engine.optimizer
        states = zero.optimizer.state.values()
        scaler = getattr(zero, "loss_scaler", None)
        return {
            "optimizer_steps": max((float(s["step"]) for s in states if "step" in s), default=0.0),
            "skipped_steps": self.skipped_steps,
            "loss_scaler": {
                key: getattr(scaler, key)
                for key in ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
                if hasattr(scaler, key)
            },
        }

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        zero = self._engine.optimizer
        for state in zero.optimizer.state.values():
            state["step"] = torch.tensor(scalars["optimizer_steps"], dtype=torch.float32)
        self._engine.skipped_steps = scalars["skipped_steps"]
        scaler = getattr(zero, "loss_scaler", None)
        if self.config.precision == "fp16":
            for key, value in scalars["loss_scaler"].items():
                setattr(scaler, key, value)

    def _make_moments(self) -> None:
        """Create Adam's state, which the optimiser would create in its first step.

        DeepSpeed links parameters to that state once, when it has stepped its first group, and
        would find nothing for the others (0.19.8, stages 1 and 2).
        """
        zero = self._engine.optimizer
        flat = getattr(zero, "fp32_partitioned_groups_flat", None)
        if flat is None:
            flat = [p for group in zero.optimizer.param_groups for p in group["params"]]
        for tensor in flat:
            state = zero.optimizer.state[tensor]
            if not state:
                state["step"] = torch.tensor(0.0)
                for moment in MOMENTS:
                    state[moment] = torch.zeros_like(tensor, memory_format=torch.preserve_format)
        if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
            zero._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: torch.nn.Parameter, moment: str | None, full: torch.Tensor) -> None:
        from deepspeed.utils import (
            safe_get_local_fp32_param,
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if hasattr(parameter, "ds_id"):  # ZeRO 3: its partitions are padded to equal size
            size = safe_get_local_fp32_param(parameter).numel()
            padded = torch.zeros(size * self.world.size)
            padded[: full.numel()] = full.flatten()
            mine = padded.narrow(0, size * self.world.rank, size).to(self.device)
            if moment is None:
                safe_set_local_fp32_param(parameter, mine)
            else:
                safe_set_local_optimizer_state(parameter, mine, moment)
        elif moment is None:
            safe_set_full_fp32_param(parameter, full.to(self.device))
        else:
            safe_set_full_optimizer_state(parameter, full.to(self.device), moment)
