"""One training step: teacher forward, micro-batches through the student, one optimiser update.

Between two logged steps there is no host-device synchronisation: losses and norms stay on the
device until they are logged. (In fp16 DeepSpeed synchronises once a step to check for overflow.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist

from fitb.base import rng, signals
from fitb.base.errors import TrainingError
from fitb.base.world import World
from fitb.config import Config, OptimConfig
from fitb.data.batch import Batch
from fitb.objective.objective import Objective, Tap
from fitb.training.execution import Execution
from fitb.training.gradients import GradientSum
from fitb.training.state import PortableState
from fitb.training.zero import deepspeed_config, ends_steps


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of a step: a pure function, so there is no schedule to checkpoint.

    The first warm-up step has lr / warmup_steps, not 0 as in transformers, and the last has lr.
    The decay of wsd is that of Haegele et al. 2024, section 3 (https://arxiv.org/abs/2405.18392).

    Args:
        step: 0-based step.
        steps: total steps of the run.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "wsd":
        decayed = max(0.0, 1 - (steps - step) / max(1, config.decay_steps))
        return config.lr * (1 - math.sqrt(decayed))
    left = max(0.0, (steps - step) / max(1, steps - config.warmup_steps))
    if config.schedule == "linear":
        return config.lr * left
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 - float(torch.cos(torch.tensor(torch.pi * left))))
    return config.lr


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two optimiser groups: matrices with weight decay, biases and LayerNorm without."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


@dataclass(frozen=True)
class StepResult:
    """Result of one optimiser update, not yet synchronised with the device.

    Args:
        sums: (terms,) fp32 on the device, this rank's sum of each loss term.
        counts: (terms,) float64, denominators over the global batch.
        coverage: (4,) float64, Batch.coverage summed over the global batch.
        grad_norm: () on the device, global norm before clipping; None if the step was skipped.
        skipped: whether the update was skipped because of an fp16 overflow.
        lr: learning rate used.
    """

    sums: torch.Tensor
    counts: torch.Tensor
    coverage: torch.Tensor
    grad_norm: torch.Tensor | None
    skipped: bool
    lr: float


class Engine:
    """The student's objective under DeepSpeed, with the frozen teacher beside it.

    Args:
        objective: student and projections, with fp32 weights.
        teacher: frozen teacher; None trains plain MLM.
        config: run configuration.
        world: rank and world size of this process.
        device: device of this process.
        length: tokens per row.
    """

    def __init__(
        self,
        objective: Objective,
        teacher: Tap | None,
        config: Config,
        world: World,
        device: torch.device,
        length: int,
    ) -> None:
        import deepspeed

        self.objective, self.config, self.world, self.device = objective, config, world, device
        self.teacher = teacher
        filled = deepspeed_config(config, world)
        stage = filled["zero_optimization"]["stage"]
        execution = Execution.of(config, world, device, length, stage)
        execution.prepare(objective, teacher, device)
        self._grad_accum = config.grad_accum(world.size)
        self._asked_at_once = execution.teacher_rows // config.rows_per_pass
        self.weights = torch.tensor(objective.weights, dtype=torch.float64)
        optimizer = torch.optim.AdamW(
            parameter_groups(objective, config.optim.weight_decay),
            lr=config.optim.lr,
            betas=config.optim.betas,
            eps=config.optim.eps,
            fused=config.speed.fused_optimizer,
        )
        self._ends_steps = ends_steps(filled)
        self._gradients = GradientSum([p for p in objective.parameters() if p.requires_grad])
        self._engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=filled)
        self.state = PortableState(self._engine, objective, world, device)
        self.before_update: Callable[[], None] = lambda: None  # called before weights change
        self._work_s, self._work_events = 0.0, list[tuple[Any, Any]]()
        self._checked_step, self._worst_norm = 0, torch.zeros((), device=device)

    def counts(self, batch: Batch | None) -> torch.Tensor:
        """Return this rank's part of a step's counts: (terms + 4,) float64 on the CPU.

        The denominator of each loss term, then Batch.coverage; zeros if there is no batch.
        """
        if batch is None:
            return torch.zeros(len(self.weights) + 4, dtype=torch.float64)
        return torch.cat([self.objective.counts(batch), batch.coverage()])

    def train_step(self, step: int, batch: Batch, counts: torch.Tensor) -> StepResult:
        """Accumulate gradients over the micro-batches and update the weights once.

        DeepSpeed averages gradients over ranks and, as configured here, sums them over
        micro-batches, so each loss is the sum over terms of weight x sum / global count x ranks.

        Args:
            step: 0-based step.
            batch: this rank's share of the global batch.
            counts: (terms + 4,) float64, what `counts` returned, summed over all ranks.
        Raises: TrainingError if gradients still overflow at the minimum loss scale.
        """
        self._engine.train()
        torch.manual_seed(int(rng.keyed(self.config.seed, step, self.world.rank) >> 1))
        lr = learning_rate(step, self.config.steps, self.config.optim)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        counts, coverage = counts[: len(self.weights)], counts[len(self.weights) :]
        scale = (self.weights / counts.clamp(min=1) * self.world.size).float()
        scale = scale.to(self.device, non_blocking=True)
        total = torch.zeros(len(scale), device=self.device)
        skipped_before, norm = self._engine.skipped_steps, None
        began = self._now()
        if self.config.speed.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            # A compiler that Slurm's signal killed would fail the step, or never answer.
            with signals.held_back(*signals.SHUTDOWN), self._accumulation() as after_backward:
                for rows, features in self._micro_batches(batch.to(self.device)):
                    sums = self._engine(rows, features)
                    self._engine.backward((sums * scale).sum(), scale_wrt_gas=False)
                    total += sums.detach()
                    self.before_update()
                    after_backward()
                self._worked_since(began)
            if self._ends_steps:
                norm = self._clip()
                self._engine.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            raise TrainingError(
                f"step {step}: the loss scale is at its minimum and gradients still overflow;"
                " lower --optim.lr or use --precision bf16"
            ) from error
        skipped = self._engine.skipped_steps > skipped_before
        return StepResult(total, counts, coverage, self._note(norm, skipped), skipped, lr)

    @contextmanager
    def _accumulation(self) -> Iterator[Callable[[], Any]]:
        """Yield the function to call after the backward pass of each micro-batch."""
        if self._ends_steps:
            with (
                self._engine.coalesce_grad_reduction(),
                self._gradients.of_micro_batches(self._grad_accum) as add,
            ):
                yield add
        else:
            yield self._engine.step

    def _now(self) -> Any:
        """Return this moment of the device's work: seconds on a CPU, an event on a GPU."""
        if self.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _worked_since(self, began: Any) -> None:
        if self.device.type == "cuda":
            self._work_events.append((began, self._now()))
        else:
            self._work_s += self._now() - began

    def take_work_s(self) -> float:
        """Return seconds of this rank's passes since the last call, without gradient reduction.

        Synchronises with the device. Under ZeRO 3, and where DeepSpeed reduces each micro-batch,
        they contain waits for other ranks.
        """
        for began, ended in self._work_events:
            ended.synchronize()
            self._work_s += began.elapsed_time(ended) / 1e3
        work_s, self._work_s = self._work_s, 0.0
        self._work_events.clear()
        return work_s

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, Any]]:
        """Yield micro-batches, each with the teacher's features of its rows."""
        # One teacher forward covers several: it stores no activations for a backward pass.
        num_rows = len(batch.input_ids)
        bounds = [num_rows * i // self._grad_accum for i in range(self._grad_accum + 1)]
        for first in range(0, self._grad_accum, self._asked_at_once):
            ends = bounds[first : first + self._asked_at_once + 1]
            rows = batch.part(ends[0], ends[-1])
            features = None
            if self.teacher is not None:
                with torch.no_grad():
                    features = self.teacher(rows)
            for begin, end in pairwise(end - ends[0] for end in ends):
                part = features and features.part(begin, end, ends[-1] - ends[0])
                yield rows.part(begin, end), part

    def _clip(self) -> torch.Tensor:
        """Clip this rank's gradient partition by the global norm, and return that norm."""
        # Non-finite gradients stay so: the loss scaler must see them. Squares are summed in fp64,
        # as in DeepSpeed: fp32 would lose small ones beside large ones.
        zero = self._engine.optimizer
        gradients = [part for group in zero.averaged_gradients.values() for part in group]
        dtype = torch.float32 if self.config.algorithms.norm == 1 else torch.float64
        squares = torch.stack(torch._foreach_norm(gradients, dtype=dtype)).square().sum()
        if self.world.size > 1:
            dist.all_reduce(squares)
        norm = squares.sqrt().float() / self.loss_scale
        if self.config.optim.clip_norm:
            clip = (self.config.optim.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, clip)
        return norm

    def _note(self, norm: torch.Tensor | None, skipped: bool) -> torch.Tensor | None:
        """Keep the largest gradient norm since the last `check_finite`; NaN is the largest."""
        if skipped:
            return None
        if norm is None:  # DeepSpeed computed it, and returns -1 for a non-finite one
            norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=self.device)
            norm = torch.where(norm < 0, torch.nan, norm)
        self._worst_norm = torch.maximum(self._worst_norm, norm)
        return norm

    def check_finite(self, step: int) -> None:
        """Synchronise with the device and check every gradient norm since the last call.

        Called before metrics, a checkpoint or an export is written.

        Args:
            step: optimiser updates done.
        Raises: TrainingError if a loss or gradient was not finite.
        """
        worst, self._worst_norm = float(self._worst_norm), torch.zeros_like(self._worst_norm)
        if not math.isfinite(worst):
            raise TrainingError(
                f"steps {self._checked_step + 1} to {step}: the loss or its gradient is not finite"
                f" (norm {worst}) in {self.config.precision}; lower --optim.lr, or look at the rows"
                " of these steps. The last checkpoint is from before"
            )
        self._checked_step = step

    @property
    def loss_scale(self) -> float:
        return float(getattr(self._engine.optimizer, "cur_scale", 1.0) or 1.0)

    @property
    def skipped_steps(self) -> int:
        return int(self._engine.skipped_steps)
