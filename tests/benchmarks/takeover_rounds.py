"""Real processes that start one run at the same moment, round after round: how many own it?

    python tests/benchmarks/takeover_rounds.py [--rounds N] [--starters 2 4]

In turn on a fresh run, after an orderly end, and after an attempt whose process is dead. One JSON
line for each number of starters: in how many rounds none, one or more of them owned the run.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fitb.base import fsio
from fitb.rundir import ownership

_FORK = multiprocessing.get_context("fork")
_FAILED = -1


def prepare(run: Path, scenario: str) -> None:
    (run / "checkpoints").mkdir(parents=True)
    if scenario == "fresh":
        return
    ownership.take(run, {})
    if scenario == "ended":
        ownership.release(run, 1)
        return
    path = run / "attempts" / "0001" / "owner.json"  # its number was given to another process
    fsio.write_json(path, fsio.read_json(path) | {"started": 1.0})


def starter(index: int, folder: Path, rounds: int, shared: Any) -> None:
    """Take every run at the same moment as the others; live on until it is known who has it."""
    barrier, numbers = shared
    for i in range(rounds):
        barrier.wait()
        try:
            numbers[index] = ownership.take(folder / str(i), {})
        except ownership.RunTaken:
            numbers[index] = 0
        except Exception:
            numbers[index] = _FAILED
        barrier.wait()


def count(rounds: int, starters: int) -> dict[str, int]:
    """Return how often each number of starters owned a run, and how often one failed otherwise."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    found: collections.Counter[str] = collections.Counter()
    shared = _FORK.Barrier(starters + 1), _FORK.Array("q", starters, lock=False)
    barrier, numbers = shared
    children = [
        _FORK.Process(target=starter, args=(i, folder, rounds, shared), daemon=True)
        for i in range(starters)
    ]
    for child in children:
        child.start()
    try:
        for i in range(rounds):
            run = folder / str(i)
            prepare(run, ("fresh", "ended", "dead")[i % 3])
            barrier.wait()
            barrier.wait()
            fences = {name for name in os.listdir(run / "checkpoints") if name[1:].isdigit()}
            owners = sum(f".{number:04d}" in fences for number in numbers)
            found[f"{owners} owners"] += 1
            found["failed"] += _FAILED in numbers
            found["other fences"] += len(fences) != owners
            shutil.rmtree(run)
    finally:
        for child in children:
            child.join(10)
        shutil.rmtree(folder)
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--starters", type=int, nargs="*", default=[2, 4])
    args = parser.parse_args()
    for starters in args.starters:
        print(json.dumps({"starters": starters, **count(args.rounds, starters)}), flush=True)


if __name__ == "__main__":
    main()
