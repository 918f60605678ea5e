"""Measured steps in several processes beside what the cost model says: `fitb bench plan`.

The model is given what two other benchmarks measure: the speed of one process alone, and the
latency and bandwidth of the collectives at the size of this student's gradients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fitb.bench import comm, step
from fitb.bench.config import PlanConfig as BenchConfig
from fitb.bench.measure import machine, render
from fitb.plan import PlanConfig, RunPlan, plan, traffic

__all__ = ["BenchConfig", "bench", "render"]


def bench(config: BenchConfig) -> dict[str, Any]:
    """Return measured and predicted milliseconds of a step by number of processes."""
    row: dict[str, Any] = {"bench": "plan", **machine(), "precision": config.precision}
    alone_tokens_per_s = 0.0
    for processes in config.processes:
        measured = step.bench(
            step.BenchConfig(
                precision=config.precision,
                length=config.length,
                micro_batch=config.micro_batch,
                processes=processes,
                repeats=config.repeats,
            )
        )
        alone_tokens_per_s = alone_tokens_per_s or measured["tokens_per_s"]["median"]
        # Processes without a GPU share the cores that the first one had for itself.
        share = 1 if measured["device"] != "cpu" else processes
        given = PlanConfig(
            gpus=processes,
            length=config.length,
            rows=measured["micro_batch"],
            precision=config.precision,
            tokens_per_s=alone_tokens_per_s / share,
        )
        found = plan(_with_network(given, plan(given)))
        measured_ms = 1e3 * measured["step_s"]["median"]
        predicted_ms = found.compute_ms + found.communication_ms
        row[f"{processes}_processes"] = {
            "measured_ms": {
                key: round(1e3 * measured["step_s"][key], 1) for key in ("median", "low", "high")
            }
            | {"runs": config.repeats},
            "predicted_ms": round(predicted_ms, 1),
            "predicted_over_measured": round(predicted_ms / measured_ms, 3),
            "communication_measured_ms": round(1e3 * measured["parts_s"]["communication"], 1),
            "communication_predicted_ms": round(found.communication_ms, 1),
        }
    return row


def _with_network(given: PlanConfig, found: RunPlan) -> PlanConfig:
    """Fill in the latency and the bandwidth that this machine gives."""
    if given.gpus == 1:
        return given
    sends = traffic(found.parameters, given.precision, 1, given.gpus)
    measured = comm.bench(
        comm.BenchConfig(mb=[sends.all_reduce_mb], precision=given.precision, processes=given.gpus)
    )
    message = measured[f"{sends.all_reduce_mb:g}_mb"]
    took_s = sum(message[name]["ms"]["median"] for name in ("all_reduce", "all_gather")) / 1e3
    return replace(
        given,
        latency_us=measured["latency_us"]["median"],
        gpu_link_gb_per_s=sends.sent_mb / 1e3 / took_s,
    )
