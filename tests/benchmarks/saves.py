"""What a save costs training: beside it, blocking it, and not at all, in turns.

    python tests/benchmarks/saves.py --json [--steps 400] [--every 20] [--turns 3]

TinyBERT-4's size, MLM alone, two processes of this machine. The stall of a save is what the
training thread of any rank waits and copies for it, or, where it blocks, all of it.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from fitb.base.errors import SystemFault
from fitb.base.fsio import read_records
from fitb.bench.text import shards_of_docstrings
from fitb.bench.timing import machine, spread
from fitb.cluster.local import LocalRun, train_command

_VOCABULARY = 30_522
_MODES = ("none", "blocking", "background")


def bench(
    steps: int = 400,
    every: int = 20,
    turns: int = 3,
    length: int = 64,
    micro_batch: int = 4,
    processes: int = 2,
) -> dict[str, Any]:
    """Return greatest stalls, and seconds of wall time that a save costs.

    Args:
        steps: steps of each run.
        every: steps between two saves.
        turns: runs of each kind, one after another.
        length: tokens in a row.
        micro_batch: rows of a process in a step.
        processes: started on this machine.
    """
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in _MODES}
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as name:
        flags = mlm_flags(steps, every, micro_batch, processes)
        flags["data.shards"] = shards_of_docstrings(Path(name), length, _VOCABULARY)
        for turn, mode in itertools.product(range(turns), _MODES):
            own = {
                "checkpoint.every_steps": every if mode != "none" else 0,
                "checkpoint.background": str(mode == "background").lower(),
                "run_dir": Path(name) / f"{mode}-{turn}",
            }
            found[mode].append(_run(flags | own, processes))
    row: dict[str, Any] = {"bench": "saves", **machine(), "processes": processes}
    row |= {"steps": steps, "every": every, "length": length, "micro_batch": micro_batch}
    saves = steps // every - 1  # that a run without has not: all save at the end
    parts = {
        mode: [save for run in found[mode] for save in run["saves"]]
        for mode in ("background", "blocking")
    }
    row["p99_stall_s"] = max(save["wait"] + save["copy"] for save in parts["background"])
    row["p99_stall_blocking_s"] = max(sum(save.values()) for save in parts["blocking"])
    for mode, key in (("background", "slowdown_s"), ("blocking", "slowdown_blocking_s")):
        more = [
            (run["seconds"] - without["seconds"]) / saves
            for run, without in zip(found[mode], found["none"], strict=True)
        ]
        row[key], row[f"{key}_spread"] = round(statistics.median(more), 3), spread(more)
    for mode in _MODES:
        row[f"{mode}_run_s"] = spread([run["seconds"] for run in found[mode]], 1)
    for mode, each in parts.items():
        row[f"{mode}_parts_s"] = {
            part: spread([save[part] for save in each])
            for part in ("wait", "copy", "write", "commit")
        }
    return row


def mlm_flags(steps: int, every: int, micro_batch: int, processes: int) -> dict[str, Any]:
    """Return flags of MLM alone, logged every so many steps; data and folder are the caller's."""
    flags: dict[str, Any] = {
        "steps": steps,
        "model.teacher": "null",
        "precision": "fp32",
        "micro_batch": micro_batch,
        "global_batch": micro_batch * processes,
        "optim.warmup_steps": steps // 10,
        "eval.every_steps": 0,
        "track.wandb": "disabled",
        "track.every_steps": every,
    }
    flags |= {f"objective.{term}": 0 for term in ("embedding", "hidden", "attention", "logits")}
    return flags


def _run(flags: dict[str, Any], processes: int) -> dict[str, Any]:
    """Train; return the parts of its saves, and the seconds from the first step to the end."""
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    with (
        tempfile.TemporaryFile() as output,
        LocalRun(train_command(words), processes, output=output) as ranks,
    ):
        if code := ranks.wait():
            output.seek(0)
            said = output.read().decode(errors="replace").splitlines()[-3:]
            raise SystemFault(f"the training ended with {code}: {said}")
    events = list(read_records(Path(flags["run_dir"]) / "events.jsonl", "event"))
    moments = {e["event"]: datetime.fromisoformat(e["time"]).timestamp() for e in events}
    return {
        "saves": [event["seconds"] for event in events if event["event"] == "save"],
        "seconds": moments["stop"] - moments["first_step"],
    }


if __name__ == "__main__":
    from command import print_json

    print_json(bench)
