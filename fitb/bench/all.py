"""Every benchmark in turn, each with its own defaults: `fitb bench all`."""

from __future__ import annotations

from typing import Any

from fitb.bench import attention, comm, data, duplicates, infer, plan, resume, step
from fitb.bench.config import AllConfig as BenchConfig
from fitb.bench.measure import render

__all__ = ["BenchConfig", "bench", "render"]


def bench(config: BenchConfig) -> dict[str, Any]:
    """Return each one's row under its name."""
    return {
        "step": step.bench(step.BenchConfig(baseline=True)),
        "attention": attention.bench(attention.BenchConfig()),
        "comm": comm.bench(comm.BenchConfig()),
        "plan": plan.bench(plan.BenchConfig()),
        "resume": resume.bench(resume.BenchConfig()),
        "infer": infer.bench(infer.BenchConfig()),
        "data": data.bench(data.BenchConfig()),
        "duplicates": duplicates.bench(duplicates.BenchConfig()),
    }
