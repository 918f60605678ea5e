"""One training run under many faults on a real Slurm of three hosts, and what it cost.

    make soak        or        python tests/benchmarks/soak.py --faults 42 --seed 7 --out soak.json
    ... --without      saves block training, and each crash goes through the queue

A run of some hundred steps on two of three hosts, one rank each, is interrupted at random moments
of a printed seed: while it starts, while it trains, while it saves. Every fault waits until the run
has gone on. In the end the weights are compared with those of a run that nothing interrupted, and
rows and steps are counted from what was written down. Steps are slowed to a fifth of a second, or
they would be over before a fault arrives.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from faults import FAULTS, ROOT, Soak, schedule
from slurm_cluster import a_cluster
from small import make_shards, make_teacher, mounted, quick
from traced import rows_of_steps, weights
from wandb_server import KEY, WandbServer

from fitb.base.fsio import read_json, read_lines
from fitb.cluster.local import LocalRun, hold_port, train_command
from fitb.rundir.ledger import ledger

INTERVAL = 10  # steps between two checkpoints
DISK_MB = 96
RANKS = 2

# Each step of a training records its rows, and takes 0.2 s longer.
SITE = """
import sys
if "train" in sys.orig_argv:
    import time
    from traced import record_rows
    from fitb.training.engine import Engine
    record_rows()
    step = Engine.train_step
    def slow(self, *args):
        time.sleep(0.2)
        return step(self, *args)
    Engine.train_step = slow
"""


def count_rows(run_dir: Path, num_rows: int, steps: int) -> tuple[int, int]:
    """Return (rows lost, rows repeated) over the epochs of a run, from its trace.

    Of whole epochs every row must come once; of the last, which is not over, none twice.
    """
    rows = rows_of_steps(run_dir)
    lost = sum(step not in rows for step in range(1, steps + 1))
    in_order = [row for step in sorted(rows) for row in rows[step]]
    repeated = 0
    for begin in range(0, len(in_order), num_rows):
        epoch = Counter(in_order[begin : begin + num_rows])
        repeated += sum(count - 1 for count in epoch.values())
        if begin + num_rows <= len(in_order):
            lost += num_rows - len(epoch)
    return lost, repeated


def straight_weights(folder: Path, flags: list[str]) -> dict[str, str]:
    """Of a run of two ranks on this machine that nothing interrupts."""
    command = train_command([*flags, "--run_dir", str(folder), "--track.wandb", "disabled"])
    with LocalRun(command, 2, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}) as ranks:
        assert ranks.wait(900) == 0
    return weights(folder)


WITHOUT = ["--checkpoint.background", "false", "--stop.restarts", "0"]


def soak(
    num_faults: int, seed: int, steps: int, kinds: list[str], more: list[str], folder: Path
) -> dict[str, Any]:
    """Run it, with more flags of the training, and return what soak.json holds."""
    shards = make_shards(folder)
    flags = quick(
        shards, make_teacher(folder, shards), steps=steps, checkpoint_every=INTERVAL, eval_every=0
    )
    flags += ["--stop.hang_s", "120", *more]
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    straight = straight_weights(folder / "straight", flags)
    began = time.monotonic()
    disk = ("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs")
    with hold_port() as held, mounted(folder / "disk", *disk), a_cluster(num_hosts=3) as cluster:
        port = held.getsockname()[1]
        it = Soak(cluster, folder, flags, port, random.Random(seed))
        it.start_wandb()
        try:
            it.submit()
            plan = schedule(num_faults, it.random, kinds)
            for number, kind in enumerate(plan, 1):
                fault = it.suffer(kind)
                print(f"{number}/{len(plan)} {json.dumps(asdict(fault))}", flush=True)
                if cluster.state(it.job) == "COMPLETED":
                    break
            it.await_going("the end", lambda: False)
            minutes = (time.monotonic() - began) / 60
            wandb_id = (it.run_dir / "wandb_id").read_text().strip()
            result = judge(it, straight, read_json(shards / "manifest.json"), steps)
        finally:
            it.stop_wandb()
            logs = [path.read_bytes() for path in it.run_dir.rglob("*") if path.is_file()]
    with WandbServer(journal=folder / "wandb.jsonl") as server:
        sent = server.runs[wandb_id].steps()
    result |= {
        "wandb_steps_missing": len(set(range(1, steps + 1)) - set(sent)),
        "wandb_steps_twice": len(sent) - len(set(sent)),
        "keys_in_files": sum(KEY.encode() in log for log in logs),
    }
    return {"seed": seed, "steps": steps, "interval": INTERVAL, "minutes": round(minutes), **result}


def judge(
    it: Soak, straight: dict[str, str], manifest: dict[str, Any], steps: int
) -> dict[str, Any]:
    rows = sum(s["rows"] for s in manifest["shards"] if s["split"] == "train")
    lost, repeated = count_rows(it.run_dir, rows, steps)
    logged = [record["train/step"] for record in read_lines(it.run_dir / "metrics.jsonl")]
    found = ledger(it.run_dir)
    assert found is not None
    wall_s = RANKS * it.wall_s
    losses = {
        graceful: [fault.steps_lost for fault in it.faults if fault.graceful is graceful]
        for graceful in (True, False)
    }
    return {
        "faults": len(it.faults),
        "attempts": it.attempt(),
        "bitwise_equal": weights(it.run_dir) == straight,
        "epochs": round(steps * 16 / rows, 2),
        "rows_lost": lost,
        "rows_repeated": repeated,
        "steps_missing_in_metrics": len(set(range(1, steps + 1)) - set(logged)),
        "steps_twice_in_metrics": len(logged) - len(set(logged)),
        "steps_lost_graceful": max(losses[True], default=0),
        "steps_lost_hard_max": max(losses[False], default=0),
        "goodput": round(found.goodput, 4),
        "ettr": round(found.ettr, 4),
        "ledger_error": round(abs(sum(found.seconds.values()) - wall_s) / wall_s, 5),
        "ledger": found.record()["rank_seconds"],
        "table": [asdict(fault) for fault in it.faults],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=42)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--kinds", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--without", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fitb-soak-") as folder:
        more = WITHOUT if options.without else []
        kinds = options.kinds
        result = soak(options.faults, options.seed, options.steps, kinds, more, Path(folder))
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    shown = {key: value for key, value in result.items() if key != "table"}
    print(json.dumps(shown))
    nothing_lost = result["bitwise_equal"] and not any(
        result[key] for key in result if key.startswith(("rows_", "steps_missing", "steps_twice"))
    )
    in_flight = INTERVAL // 2  # at most, of the save that a kill interrupts
    kept = result["steps_lost_graceful"] == 0
    kept = kept and result["steps_lost_hard_max"] <= INTERVAL + in_flight
    wandb = not (result["wandb_steps_missing"] or result["wandb_steps_twice"])
    accounted = result["ledger_error"] < 0.01
    well = nothing_lost and kept and wandb and accounted
    return 0 if well and not result["keys_in_files"] else 1


if __name__ == "__main__":
    sys.exit(main())
