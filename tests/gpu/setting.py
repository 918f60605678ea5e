"""Sizes, variants of a step, and comparisons that the checks of tests/gpu share."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fitb.base.world import World
from fitb.bench.bench_config import StepBenchConfig
from fitb.bench.step import Variant, start
from fitb.config import Geometry, SpeedConfig
from fitb.model.flops import BERT_BASE

HALVES = ("bf16", "fp16")
SMALL = Geometry(4, 64, 128, 4), Geometry(2, 32, 64, 4)  # teacher, student


class Wrong(AssertionError):
    """A number that is not what it must be."""


@dataclass(frozen=True)
class Setting:
    """What a check runs on.

    Args:
        shards: folder with the shard sets 128 and 512, named by the length of their rows.
        dry: whether this is a CPU that walks through small sizes.
        broken: whether what this check measures is falsified, so that it must fail.
        out: folder for runs.
    """

    shards: Path
    dry: bool
    broken: bool
    out: Path

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    def rows(self, number: int) -> int:
        """Return a number of rows, at most 2 where every row takes its time."""
        return min(number, 2) if self.dry else number

    def sizes(self) -> tuple[Geometry, Geometry]:
        """Return teacher and student: BERT-base and TinyBERT-4, or small ones."""
        return SMALL if self.dry else (BERT_BASE, Geometry())

    def variant(
        self,
        precision: Any,
        rows: int,
        grad_accum: int = 1,
        ds_config: str = "zero2",
        *,
        length: int = 128,
        small: bool = False,
        **speed: Any,
    ) -> Variant:
        """Build an engine as `fitb bench step` does: BERT-base and TinyBERT-4, or small models."""
        teacher, student = SMALL if small else self.sizes()
        config = StepBenchConfig(
            precision=precision,
            length=length,
            micro_batch=self.rows(rows),
            grad_accum=grad_accum,
            shards=str(self.shards / str(length)),
            ds_config=ds_config,
            teacher=teacher,
            student=student,
            speed=SpeedConfig(**({"compile": False} | speed)),
        )
        device, run = start(config, World())
        return Variant(run, False, World(), device)

    def measured(self, value: Any) -> Any:
        """Pass what was measured through; if the check is broken on purpose, falsify it."""
        if not self.broken:
            return value
        if isinstance(value, bool):
            return not value
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self.measured(each) for each in value]
        return 1.5 * value + 1

    def close(self, what: str, found: Any, expected: Any, rel: float) -> float:
        """Return the largest relative difference of two tensors; raise Wrong if over `rel`."""
        ours, theirs = (torch.as_tensor(each).double().cpu() for each in (found, expected))
        ours = self.measured(ours)
        apart = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
        if not apart <= rel:
            raise Wrong(f"{what}: {apart:.3g} apart, at most {rel:g} allowed")
        return apart

    def apart(self) -> dict[str, Any]:
        """Settings of a process outside this one's group, and of any source tree."""
        ours = World().env("", 0)
        return {"env": {k: v for k, v in os.environ.items() if k not in ours}, "cwd": self.out}

    def wait(self) -> None:
        """Wait until the device has done what it was asked."""
        if not self.dry:
            torch.cuda.synchronize()

    def require(self, what: str, holds: bool) -> None:
        """Raise Wrong unless something holds."""
        if not self.measured(bool(holds)):
            raise Wrong(f"{what}: does not hold")


def one_step(variant: Variant) -> dict[str, Any]:
    """Make a step; return the means of the terms, the gradient norm, and whether it was skipped."""
    step, batch = next(variant.rows)
    assert batch is not None
    result = variant.engine.train_step(step, batch, variant.engine.counts(batch))
    means = result.sums.double().cpu() / result.counts.clamp(min=1)
    norm = None if result.grad_norm is None else float(result.grad_norm)
    return {"terms": means.tolist(), "norm": norm, "skipped": result.skipped}


def terms_on_cpu(variant: Variant) -> list[float]:
    """Return the means of the terms of the next batch in fp32 on the CPU; it stays the next."""
    step, batch = next(variant.rows)
    assert batch is not None
    variant.rows = _before((step, batch), variant.rows)
    objective = copy.deepcopy(variant.engine.objective).cpu().float()
    teacher = copy.deepcopy(variant.engine.teacher).cpu().float()
    with torch.no_grad():
        sums = objective(batch, teacher(batch))
    means: list[float] = (sums.double() / objective.counts(batch).clamp(min=1)).tolist()
    return means


def _before(first: Any, rest: Any) -> Any:
    yield first
    yield from rest


def milliseconds(work: Callable[[], Any], at: Setting, times: int = 10) -> float:
    for _ in range(2):
        work()
    at.wait()
    began_s = time.perf_counter()
    for _ in range(times):
        work()
    at.wait()
    return round(1e3 * (time.perf_counter() - began_s) / times, 3)
