"""Metrics of a logged step (docs/design.md, section 5), from its loss sums and counts."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from fitb.config import Config
from fitb.rundir.writer import RunDir
from fitb.training.engine import StepResult
from fitb.training.setup import Parts
from fitb.training.slowest import Slowest


class Meter:
    """Turns step results into metrics, on logged steps only.

    Between two logged steps it counts tokens and moves no data off the device.
    """

    def __init__(self, parts: Parts, run: RunDir, config: Config) -> None:
        self._parts, self._config = parts, config
        self._tokens = 0.0
        self._num_ranks = parts.engine.world.size
        self._slowest = Slowest(run, parts.engine.world)
        self._since_s = time.monotonic()
        self._since_step, self._since_wait_s = parts.progress.step, 0.0

    def read(self, step: int, result: StepResult) -> dict[str, float]:
        """Return the metrics of this step, on every rank; empty if the step is not logged.

        Args:
            step: optimiser updates done.
            result: result of the last one.
        Raises: TrainingError if an update since the last check was not finite.
        """
        rows, tokens, slots, slots_squared = result.coverage.tolist()
        self._tokens += tokens
        if step % self._config.track.every_steps and step != self._config.steps:
            return {}
        engine = self._parts.engine
        work_s = engine.take_work_s() + self._parts.stream.waited_s - self._since_wait_s
        each = torch.zeros(self._num_ranks, dtype=torch.float64, device=engine.device)
        each[engine.world.rank] = work_s
        both = torch.cat([result.sums.double(), each])
        if self._num_ranks > 1:
            dist.all_reduce(both)
        sums, each = both[: len(result.sums)], both[len(result.sums) :]
        engine.check_finite(step)
        means = (sums.cpu() / result.counts.clamp(min=1)).tolist()
        metrics = terms(engine.objective.names, engine.objective.weights, means)
        mean_slots = slots / rows
        metrics |= {
            "mask/coverage": slots / max(1.0, tokens),
            "mask/slots_per_row": mean_slots,
            "mask/slots_per_row_variance": slots_squared / rows - mean_slots**2,
            "optim/lr": result.lr,
            "optim/loss_scale": engine.loss_scale,
            "optim/skipped_steps": engine.skipped_steps,
        }
        if result.grad_norm is not None:
            metrics["optim/grad_norm"] = float(result.grad_norm)
        return metrics | self._speed(step, each.tolist()) | embedding_norms(self._parts)

    def _speed(self, step: int, work_s: Sequence[float]) -> dict[str, float]:
        now, waited_s = time.monotonic(), self._parts.stream.waited_s
        seconds = max(now - self._since_s, 1e-9)
        slowest = self._slowest.compare(work_s, step - self._since_step, seconds)
        tokens_per_s = self._tokens / seconds
        tflops = tokens_per_s / self._num_ranks * self._parts.token_flops / 1e12
        speed = {
            "perf/tokens_per_s": tokens_per_s,
            "perf/tflops": tflops,
            "perf/steps_per_s": (step - self._since_step) / seconds,
            "perf/data_wait_frac": (waited_s - self._since_wait_s) / seconds,
        }
        if self._parts.peak_tflops:
            speed["perf/mfu"] = tflops / self._parts.peak_tflops
        self._tokens, self._since_s, self._since_step = 0.0, now, step
        self._since_wait_s = waited_s
        return speed | slowest


def embedding_norms(parts: Parts) -> dict[str, float]:
    """Return the mean L2 norms of the student's embeddings, of added and of other tokens.

    Collective: gathers the embedding matrix, which ZeRO-3 partitions; empty without added tokens.
    """
    if not parts.added_ids:
        return {}
    from deepspeed.utils import safe_get_full_fp32_param

    student = parts.engine.objective.student.model
    norms = safe_get_full_fp32_param(student.get_input_embeddings().weight).norm(dim=1)
    added = torch.zeros(len(norms), dtype=torch.bool, device=norms.device)
    added[list(parts.added_ids)] = True
    return {
        "embeddings/added_norm": float(norms[added].mean()),
        "embeddings/norm": float(norms[~added].mean()),
    }


def terms(
    names: tuple[str, ...], weights: tuple[float, ...], means: list[float]
) -> dict[str, float]:
    """Return each loss term unweighted, the weighted sum of each kind, and the totals.

    `weighted/KIND` sums a kind over its layers, `distill/total` all distillation kinds, and
    `train/loss` those and the MLM loss.

    Args:
        names: name of each term.
        weights: weight of each term; 0 for one that is only logged.
        means: mean of each term over the global batch.
    """
    metrics = dict(zip(names, means, strict=True))
    weighted: dict[str, float] = {}
    for name, weight, mean in zip(names, weights, means, strict=True):
        if weight:
            kind = f"weighted/{name.split('/')[1].removeprefix('loss_')}"
            weighted[kind] = weighted.get(kind, 0.0) + weight * mean
    distilled = [v for kind, v in weighted.items() if kind != "weighted/mlm"]
    if distilled:
        metrics["distill/total"] = sum(distilled)
    return {"train/loss": sum(weighted.values()), **metrics, **weighted}
