"""Runs of `fitb train` in several processes, and what they left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from traced import newest

from fitb.base.fsio import read_lines
from fitb.cluster.local import LocalRun
from fitb.training.checkpoint import read

TIMEOUT_S = 240.0
FITB = ("-m", "fitb")
IN_FP16 = (str(Path(__file__).parent / "in_fp16.py"),)  # the same, fp16 in software
TRACED = (str(Path(__file__).parents[1] / "traced.py"),)  # the same, recording its rows


def command(flags: list[str], run_dir: Path, program: tuple[str, ...] = FITB) -> list[str]:
    return [sys.executable, *program, "train", *flags, "--run_dir", str(run_dir)]


def run(
    flags: list[str],
    run_dir: Path,
    num_processes: int = 2,
    env: dict[str, str] | None = None,
    program: tuple[str, ...] = FITB,
) -> int:
    """Run to the end; return the common exit code."""
    with LocalRun(command(flags, run_dir, program), num_processes, env=env) as job:
        return job.wait(TIMEOUT_S)


def run_and_signal(
    flags: list[str],
    run_dir: Path,
    number: int,
    *,
    at_step: int,
    rank: int | None,
    size: int = 2,
    program: tuple[str, ...] = FITB,
) -> int:
    """Run until a step is logged, signal one rank (None: all), and return the exit code."""
    with LocalRun(command(flags, run_dir, program), size) as job:
        wait_for_step(job, run_dir, at_step)
        job.signal(number, rank)
        return job.wait(TIMEOUT_S)


def wait_for_step(job: LocalRun, run_dir: Path, step: int) -> None:
    """Wait until a step is logged."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while steps(run_dir)[-1:] < [step]:
        assert job.running() and time.monotonic() < deadline_s
        time.sleep(0.01)


def fitb(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in one process."""
    return completed([sys.executable, *FITB, *words], {**os.environ, **(env or {})})


def completed(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, env=env, check=False
    )


OF_TIME = ("perf/", "goodput/")  # metrics


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return list(read_lines(run_dir / "metrics.jsonl"))


def steps(run_dir: Path) -> list[int]:
    return [record["train/step"] for record in metrics(run_dir)]


def events(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(run_dir / "events.jsonl") if event["event"] == name]


def state(run_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint."""
    return read(newest(run_dir)).tensors


def differing(first: Path, second: Path) -> list[str]:
    """Names of tensors that are not bitwise the same."""
    a, b = state(first), state(second)
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def unlike(first: Path, second: Path) -> list[str]:
    """Metrics that differ between two runs at any step, but for those of time."""
    found = set()
    for a, b in zip(metrics(first), metrics(second), strict=True):
        found |= {k for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    return sorted(name for name in found if not name.startswith(OF_TIME))


def assert_same(first: Path, second: Path) -> None:
    assert differing(first, second) == unlike(first, second) == []
