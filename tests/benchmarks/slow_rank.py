"""Whether the rank that all others wait for is named: one slowed by 20 %, and none.

    python tests/benchmarks/slow_rank.py --json [--slow_s 120] [--idle_min 30] [--slower 0.2]

Two ranks of this machine train by MLM alone, with steps of 0.3 s and more. First one of them takes
20 % longer for its passes, then none does; printed are the seconds until the first `slow_host`
event, from the first step, and the number of such events without a slowed rank.
"""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from saves import mlm_flags

from fitb.base.fsio import read_records
from fitb.bench.text import shards_of_docstrings
from fitb.bench.timing import machine
from fitb.cluster.local import LocalRun

_SLOWED = """
import os, sys, time
from fitb.training.engine import Engine
worked = Engine._worked_since
def slowed(self, began):
    if self.world.rank == 1:
        until = time.monotonic() + float(os.environ["SLOWER"]) * (time.monotonic() - began)
        while time.monotonic() < until:
            pass
    worked(self, began)
Engine._worked_since = slowed
from fitb.cli import main
sys.exit(main(sys.argv[1:]))
"""


def bench(
    slow_s: float = 120.0,
    idle_min: float = 30.0,
    slower: float = 0.2,
    length: int = 128,
    micro_batch: int = 8,
) -> dict[str, Any]:
    """Return when a slow rank was named, and how often one that was not.

    Args:
        slow_s: seconds of training with a slowed rank.
        idle_min: minutes without one.
        slower: share of its passes that the slowed rank takes longer.
        length: tokens in a row.
        micro_batch: rows of a process in a step.
    """
    row: dict[str, Any] = {"bench": "slow_rank", **machine(), "slower": slower}
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as name:
        shards = shards_of_docstrings(Path(name), length, 30_522)
        flags = mlm_flags(10**6, 30, micro_batch, 2) | {"data.shards": shards}
        for kind, share, seconds in (("slowed", slower, slow_s), ("idle", 0.0, 60 * idle_min)):
            run = Path(name) / kind
            words = [w for k, v in {**flags, "run_dir": run}.items() for w in (f"--{k}", str(v))]
            command = [sys.executable, "-c", _SLOWED, "train", *words]
            with LocalRun(command, 2, env={"SLOWER": str(share)}) as ranks:
                while ranks.running() and not _moments(run, "first_step"):
                    time.sleep(0.1)
                time.sleep(seconds)
                ranks.signal(15)
                code = ranks.wait()
            (began,) = _moments(run, "first_step")
            named = [round(moment - began, 1) for moment in _moments(run, "slow_host")]
            metrics = list(read_records(run / "metrics.jsonl", "train/step"))
            behind = [record["perf/slowest_rank_ms"] for record in metrics[1:]]
            row[kind] = {
                "exit_code": code,
                "seconds": seconds,
                "step_s": round(seconds / max(1, metrics[-1]["train/step"]), 3),
                "named_after_s": named,
                "hosts": [e["host"] for e in read_records(run / "events.jsonl", "host")][:1],
                "slowest_rank_ms": round(sum(behind) / max(1, len(behind)), 1),
            }
    row["named_s"] = (row["slowed"]["named_after_s"] or [None])[0]
    row["false_alarms"] = len(row["idle"]["named_after_s"])
    return row


def _moments(run: Path, name: str) -> list[float]:
    events = read_records(run / "events.jsonl", "event")
    return [datetime.fromisoformat(e["time"]).timestamp() for e in events if e["event"] == name]


if __name__ == "__main__":
    from command import print_json

    print_json(bench)
