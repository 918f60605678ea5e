"""Steps in several processes of this machine, beside what the cost model of `fitb plan` predicts.

    python tests/benchmarks/plan.py --processes '[1, 2]' --length 64

The model is given what two benchmarks measure: the speed of one process alone, and the latency and
bandwidth of the collectives at the size of this student's gradients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fitb.bench import comm, step
from fitb.bench.bench_config import CommBenchConfig, StepBenchConfig
from fitb.bench.timing import machine
from fitb.tools.plan import PlanConfig, RunPlan, plan, traffic


def bench(
    precision: str = "bf16",
    length: int = 128,
    micro_batch: int | None = None,
    processes: tuple[int, ...] = (1, 2, 4),
    repeats: int = 3,
) -> dict[str, Any]:
    """Return measured and predicted milliseconds of a step by number of processes.

    Args:
        precision: as in training.
        length: tokens in a row.
        micro_batch: rows of a forward pass; null takes as many as training.
        processes: numbers of processes; the first must be 1, which tells the model its speed.
        repeats: runs of each.
    """
    assert processes[0] == 1, f"processes={processes}; expected 1 first, then more"
    row: dict[str, Any] = {"bench": "plan", **machine(), "precision": precision}
    alone_tokens_per_s = 0.0
    for number in processes:
        measured = step.bench(
            StepBenchConfig(
                precision,
                length,
                micro_batch,
                processes=number,
                repeats=repeats,  # type: ignore
            )
        )
        alone_tokens_per_s = alone_tokens_per_s or measured["tokens_per_s"]["median"]
        # Processes without a GPU share the cores that the first one had for itself.
        share = 1 if measured["device"] != "cpu" else number
        given = PlanConfig(
            gpus=number,
            length=length,
            rows=measured["micro_batch"],
            precision=precision,  # type: ignore[arg-type]
            tokens_per_s=alone_tokens_per_s / share,
        )
        found = plan(_with_network(given, plan(given)))
        measured_ms = 1e3 * measured["step_s"]["median"]
        predicted_ms = found.compute_ms + found.communication_ms
        spread = {key: round(1e3 * measured["step_s"][key], 1) for key in ("median", "low", "high")}
        row[f"{number}_processes"] = {
            "measured_ms": spread | {"runs": repeats},
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
        CommBenchConfig(mb=[sends.all_reduce_mb], precision=given.precision, processes=given.gpus)
    )
    message = measured[f"{sends.all_reduce_mb:g}_mb"]
    took_s = sum(message[name]["ms"]["median"] for name in ("all_reduce", "all_gather")) / 1e3
    return replace(
        given,
        latency_us=measured["latency_us"]["median"],
        gpu_link_gb_per_s=sends.sent_mb / 1e3 / took_s,
    )


if __name__ == "__main__":
    from command import print_json

    print_json(bench)
