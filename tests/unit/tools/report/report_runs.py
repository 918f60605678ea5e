"""What runs, `fitb evaluate` and `fitb compare` write, by hand, as far as a report reads it."""

from __future__ import annotations

from typing import Any

CONFIG = """\
run_dir: "somewhere"
steps: 40
data:
  shards: "/nowhere/shards"
optim:
  lr: 0.002
"""


def record(step: int, layers: int = 2) -> dict[str, Any]:
    """A line of metrics.jsonl with every name that training logs, by other numbers."""
    names = ["embedding", "logits"]
    names += [f"{kind}/layer_{i}" for kind in ("hidden", "attention") for i in range(1, layers + 1)]
    return {
        "train/step": step,
        "train/loss": 9.0 / step,
        **{f"distill/{name}": (place + 1) / step for place, name in enumerate(names)},
        "distill/total": 40.0 / step,
        "student/loss_mlm": 8.0 - step / 10,
        "student/top1": step / 100,
        **{f"weighted/{name}": 3.0 / step for name in ("embedding", "hidden", "mlm")},
        "mask/coverage": 0.15,
        "mask/slots_per_row": 9.0,
        "mask/slots_per_row_variance": 0.0,
        "optim/lr": 0.001,
        "optim/loss_scale": 65536.0,
        "optim/skipped_steps": 0,
        "optim/grad_norm": 2.5,
        "perf/tokens_per_s": 1000.0 + step,
        "perf/tflops": 150.0,
        "perf/mfu": 0.5,
        "perf/steps_per_s": 2.0,
        "perf/data_wait_frac": 0.001,
    }


def events() -> list[dict[str, Any]]:
    """Two attempts: a preempted one on one host, and its end on two."""

    def at(second: int, name: str, **more: Any) -> dict[str, Any]:
        time = f"2026-11-25T10:{second // 60:02}:{second % 60:02}+00:00"
        return {"time": time, "event": name, **more}

    return [
        at(0, "attempt", attempt=1, age_s=5.0, world_size=2, hosts=["a1"], job="77", restart=0),
        at(9, "first_step", attempt=1, age_s=14.0, step=1),
        at(60, "save", attempt=1, step=20, seconds=1.5),
        at(61, "stop", attempt=1, step=20, exit_code=85, reason="SIGTERM"),
        at(300, "attempt", attempt=2, age_s=4.0, world_size=4, hosts=["a1", "b2"], job="77"),
        at(305, "resume", attempt=2, age_s=9.0, step=20),
        at(306, "first_step", attempt=2, age_s=10.0, step=21),
        at(400, "stop", attempt=2, step=40, exit_code=0, reason="all steps done"),
    ]


def interval(value: float | None) -> dict[str, float | None]:
    low, high = (None, None) if value is None else (value - 0.01, value + 0.01)
    return {"value": value, "low": low, "high": high}


def evaluation(source: str, top1: float, seed: int = 0, **others: float) -> dict[str, Any]:
    """What `fitb evaluate` writes, as far as a report reads it."""
    values = {"model": top1, "unigram": 0.05} | others
    models = {
        role: {"metrics": {"loss": interval(3.0), "top1": interval(value), "ppl": interval(None)}}
        for role, value in values.items()
    }
    about = {"split": "validation", "fingerprint": "f" * 64, "num_rows": 10, "num_slots": 90}
    return {
        "models": {"model": {"source": source, "num_parameters": 1234}},
        "mask": {"strategy": "whole_word", "fraction": 0.15},
        "seed": seed,
        "sets": {"validation": {**about, "num_words": 80, "models": models}},
    }


def comparison(first: str, second: str) -> dict[str, Any]:
    """What `fitb compare` writes, as far as a report reads it."""
    found = evaluation(first, 0.5)
    found["models"] = {"A": {"source": first}, "B": {"source": second}}
    each = found["sets"]["validation"]
    del each["models"]
    apart = {"first": 0.5, "second": 0.4, "value": 0.1, "low": 0.08, "high": 0.12, "p": 0.001}
    each["differences"] = {"top1": apart}
    return found
