"""A job of two ranks is suspended, as by scontrol suspend, a debugger or a laptop's lid.

    python tests/benchmarks/suspend.py FOLDER [--hang_s 25] [--stop_s 85] [--skew_s 0 3 -3]

For each skew: every process of both ranks is stopped for `stop_s`, those of rank 1 `skew_s` after
those of rank 0 (before, where it is negative), and woken in the same order. One JSON line a case:
the exit code, and what of weights and metrics is unlike those of a run that nothing disturbed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).resolve().parents[1]
sys.path += [str(TESTS), str(TESTS / "integration")]

import job  # noqa: E402 - after the path
from small import make_shards, make_teacher, quick  # noqa: E402 - after the path

from fitb.cluster.local import LocalRun  # noqa: E402 - after the path

AT_STEP, STEPS = 15, 60


def processes(rank: int) -> list[psutil.Process]:
    """A rank and what it started."""
    first = psutil.Process(rank)
    return [first, *first.children(recursive=True)]


def suspended(flags: list[str], run: Path, stop_s: float, skew_s: float) -> dict[str, Any]:
    """Run to the end, suspended once; return its exit code and the stacks that were written."""
    with LocalRun(job.command(flags, run), 2) as ranks:
        while job.steps(run)[-1:] < [AT_STEP]:
            assert ranks.running() == [0, 1]
            time.sleep(0.02)
        order = [process.pid for process in ranks._processes][:: -1 if skew_s < 0 else 1]
        stopped = [processes(pid) for pid in order]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for place, each in enumerate(stopped):
                time.sleep(abs(skew_s) * place)
                for process in each:
                    process.send_signal(number)
            time.sleep(stop_s * (number == signal.SIGSTOP))
        code = ranks.wait(job.TIMEOUT_S)
    return {"code": code, "stacks": [path.name for path in (run / "logs").glob("stacks-*")]}


def main(folder: Path, hang_s: float, stop_s: float, skews_s: Sequence[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shards = make_shards(folder)
    flags = quick(shards, make_teacher(folder, shards), steps=STEPS)
    flags += ["--stop.hang_s", str(hang_s), "--track.wandb", "disabled"]
    straight = folder / "straight"
    assert job.run(flags, straight) == 0
    for skew_s in skews_s:
        run = folder / f"skew{skew_s:g}"
        line: dict[str, Any] = {"skew_s": skew_s, "stop_s": stop_s, "hang_s": hang_s}
        line |= suspended(flags, run, stop_s, skew_s)
        if line["code"] == 0:
            line |= {"unlike": job.differing(straight, run) + job.unlike(straight, run)}
            line |= {"attempts": len(job.events(run, "attempt"))}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hang_s", type=float, default=25.0)
    parser.add_argument("--stop_s", type=float, default=85.0)
    parser.add_argument("--skew_s", type=float, nargs="+", default=[0.0, 3.0, -3.0])
    asked = parser.parse_args()
    main(asked.folder, asked.hang_s, asked.stop_s, asked.skew_s)
