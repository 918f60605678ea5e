"""What a signal does at any moment of a run: exit code, seconds, steps lost.

    python tests/benchmarks/signals.py --json [--moments '[save, export]']

Two ranks of this machine train a small student. At each moment both get SIGUSR1, SIGTERM, or one
after the other; then the same command goes on to the end, and the weights are compared with those
of a run that nothing interrupted. `decision` is the exit code with which the batch script ends.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from small import make_shards, make_teacher, quick
from traced import weights

from fitb.base.fsio import read_lines
from fitb.bench.timing import machine
from fitb.cluster.local import LocalRun
from fitb.rundir.events import num_attempts, read_events

# Each moment stands still for a second when it comes for the first time, and says so.
_PROGRAM = """
import os, sys, time
from pathlib import Path
wanted, mark = os.environ["MOMENT"], Path(os.environ["MARK"])
def reached(moment):
    if moment == wanted and not (mine := Path(f"{mark}.{os.getpid()}")).exists():
        mine.touch()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            time.sleep(0.01)
def before(owner, name, moment, when=lambda *args: True):
    function = getattr(owner, name)
    def hooked(*args, **kwargs):
        if when(*args):
            reached(moment)
        return function(*args, **kwargs)
    setattr(owner, name, hooked)
reached("imports")
from fitb.training import checkpoint, loop, milestones
from fitb.training.engine import Engine
before(loop, "start_distributed", "process group")
before(loop, "build", "models")
before(Engine, "train_step", "first step", lambda engine, step, *_: step == 0)
before(Engine, "train_step", "a step", lambda engine, step, *_: step == 12)
before(milestones, "count", "validation")
before(milestones, "_write_export", "export")
before(checkpoint, "commit", "save")
from fitb.cli import main
sys.exit(main(sys.argv[1:]))
"""
MOMENTS = (
    *("imports", "process group", "models", "first step", "a step", "validation", "export"),
    "save",
)
SIGNALS = {
    "SIGUSR1": (signal.SIGUSR1,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGUSR1, SIGTERM": (signal.SIGUSR1, signal.SIGTERM),
}


def bench(moments: tuple[str, ...] = MOMENTS) -> dict[str, Any]:
    """Return a table: moment, signals, exit codes, seconds, steps lost, bitwise equal.

    Args:
        moments: some of MOMENTS.
    """
    row: dict[str, Any] = {"bench": "signals", **machine()}
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as name:
        folder = Path(name)
        shards = make_shards(folder)
        flags = quick(shards, make_teacher(folder, shards))
        with _ranks(flags, folder / "straight", "", folder / "mark") as ranks:
            assert ranks.wait() == 0
        straight = weights(folder / "straight")
        table = []
        for number, (moment, (names, signals)) in enumerate(
            (moment, pair) for moment in moments for pair in SIGNALS.items()
        ):
            run = folder / f"run-{number}"
            found = _turn(flags, run, moment, signals)
            with _ranks(flags, run, "", run) as ranks:
                finished = ranks.wait() == 0
            equal = finished and weights(run) == straight
            steps = [record["train/step"] for record in read_lines(run / "metrics.jsonl")]
            found |= {"steps_lost": _lost(run, found["at_step"]), "bitwise_equal": equal}
            found["metrics_whole"] = steps == list(range(1, 25))
            table.append({"moment": moment, "signals": names, **found})
            print(table[-1], file=sys.stderr, flush=True)
    row["table"] = table
    row["steps_lost"] = max(each["steps_lost"] for each in table)
    row["all_well"] = all(
        each["decision"] == 85 and each["bitwise_equal"] and each["metrics_whole"] for each in table
    )
    return row


def _ranks(flags: list[str], run: Path, moment: str, mark: Path) -> LocalRun:
    command = [sys.executable, "-c", _PROGRAM, "train", *flags, "--run_dir", str(run)]
    return LocalRun(command, 2, env={"MOMENT": moment, "MARK": str(mark)})


def _turn(
    flags: list[str], run: Path, moment: str, signals: tuple[signal.Signals, ...]
) -> dict[str, Any]:
    """Start, signal at the moment, and wait for the end."""
    mark, seen = Path(f"{run}.mark"), num_attempts(run)
    with _ranks(flags, run, moment, mark) as ranks:
        while not list(mark.parent.glob(f"{mark.name}.*")):
            assert ranks.running(), f"it ended before {moment}"
            time.sleep(0.01)
        time.sleep(0.2)
        began = time.monotonic()
        for number in signals:
            ranks.signal(number)
            time.sleep(0.05)
        code = ranks.wait()
        seconds = time.monotonic() - began
    metrics = run / "metrics.jsonl"
    at_step = max((r["train/step"] for r in read_lines(metrics, "train/step")), default=0)
    decision = [sys.executable, "-m", "fitb.rundir.restart", str(run), str(code), str(seen)]
    decided = subprocess.run(decision, check=False, stdout=subprocess.DEVNULL).returncode
    return {
        "exit_code": code,
        "decision": decided,
        "seconds": round(seconds, 1),
        "at_step": at_step,
    }


def _lost(run: Path, at_step: int) -> int:
    """Return steps that were logged before the signal and done again after it."""
    resumed = [event["step"] for event in read_events(run) if event["event"] == "resume"]
    return max(0, at_step - (resumed[0] if resumed else 0))


if __name__ == "__main__":
    from command import print_json

    print_json(bench)
