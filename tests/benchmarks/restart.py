"""From the SIGKILL of a rank to the next step: in the same allocation, and through the queue.

    python tests/benchmarks/restart.py --json [--kills 10]

TinyBERT-4 learns from a teacher of BERT-base's size, two ranks on two hosts of a real Slurm; the
ranks are killed in turns, each time after a save. Through the queue includes Slurm's hold of two
minutes. `start_s` is what a start takes that nothing preceded: from the process of rank 0 to its
first step. Needs root and Slurm's packages (`make slurm-packages`).
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from faults import ROOT  # before the cluster's modules, whose folder it adds to the path
from machine import wait_until
from slurm_cluster import Cluster, ClusterUnavailable, a_cluster
from small import flags_of, make_teacher

from fitb.base.fsio import read_lines
from fitb.bench.text import shards_of_docstrings
from fitb.bench.timing import machine, spread
from fitb.config import Geometry
from fitb.rundir.checkpoints import last_committed_step

_BERT_BASE = Geometry(12, 768, 3072, 12)
_VOCABULARY = 30_522
_RANK = ("-m", "fitb", "train")
_PATIENCE_S = 600
_WAYS = {"in_allocation": 1000, "through_queue": 0}  # stop.restarts


def bench(kills: int = 10, length: int = 64) -> dict[str, Any]:
    """Return medians in seconds, and the parts of each way.

    Args:
        kills: of each way.
        length: tokens in a row.
    """
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as name, a_cluster() as cluster:
        folder = Path(name)
        shards = shards_of_docstrings(folder, length, _VOCABULARY)
        flags = {
            "config": "tinybert4",
            "model.teacher": make_teacher(folder, shards, _BERT_BASE, length),
            "data.shards": shards,
            "steps": 1_000_000,
            "precision": "fp32",
            "micro_batch": 1,
            "global_batch": 2,
            "eval.every_steps": 0,
            "checkpoint.every_steps": 2,
            "track.wandb": "disabled",
            "track.every_steps": 1,
        }
        found = {
            way: _killed(cluster, folder / way, flags | {"stop.restarts": restarts}, kills)
            for way, restarts in _WAYS.items()
        }
    row: dict[str, Any] = {"bench": "restart", **machine(), "kills": kills, "length": length}
    for way, restarts in found.items():
        row[f"{way}_s"] = round(statistics.median(each["total"] for each in restarts[1:]), 2)
        parts = {part: spread([each[part] for each in restarts[1:]]) for part in restarts[1]}
        row[f"{way}_parts_s"] = parts
    fresh = [found["in_allocation"][0], *found["through_queue"]]
    row["start_s"] = round(statistics.median(each["start"] for each in fresh), 2)
    return row


def _killed(
    cluster: Cluster, run_dir: Path, flags: dict[str, object], kills: int
) -> list[dict[str, float]]:
    """Run a job and kill its ranks; return the seconds of its first start, and after each kill."""
    words = [f"--output={run_dir}.out", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0"]
    words += ["--cpus-per-task=1", "--time=240", str(ROOT / "slurm" / "distill.sh")]
    env = {"FITB_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    job = cluster.sbatch(*words, *flags_of(flags | {"run_dir": run_dir}), env=env, cwd=ROOT)
    starts, killed_s, saved = [], time.time(), 0
    for number in range(kills + 1):
        wait_until(lambda n=number: len(_of(run_dir, "first_step")) > n, _PATIENCE_S, "a step")
        starts.append(_parts(run_dir, killed_s))
        if number == kills:
            break
        wait_until(lambda s=saved: last_committed_step(run_dir) > s, _PATIENCE_S, "a save")
        saved = last_committed_step(run_dir)
        (pid,) = cluster.processes(cluster.hosts[number % 2], *_RANK)
        killed_s = time.time()
        os.kill(pid, signal.SIGKILL)
    cluster("scancel", job)
    cluster.wait_state(job, "CANCELLED")
    print(f"{run_dir.name}: {starts}", file=sys.stderr)
    return starts


def _of(run_dir: Path, *names: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(run_dir / "events.jsonl") if event["event"] in names]


def _parts(run_dir: Path, killed_s: float) -> dict[str, float]:
    """Return seconds to the decision, to the next process of rank 0, and to its first step."""
    first = _of(run_dir, "first_step")[-1]
    ends = datetime.fromisoformat(first["time"]).timestamp()
    decided = [datetime.fromisoformat(e["time"]) for e in _of(run_dir, "restart", "requeue")]
    decided_s = decided[-1].timestamp() if decided else killed_s
    began = ends - first["age_s"]
    seconds = {
        "decision": decided_s - killed_s,
        "launch": began - decided_s,
        "start": first["age_s"],
        "total": ends - killed_s,
    }
    return {part: round(value, 2) for part, value in seconds.items()}


if __name__ == "__main__":
    from command import print_json

    try:
        print_json(bench)
    except ClusterUnavailable as error:
        sys.exit(f"no Slurm on this machine: {error}")
