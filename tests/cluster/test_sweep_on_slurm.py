"""A sweep as a job array on a real Slurm: each run is preempted, restarted and told apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from machine import wait_until
from real import RANK, TIMEOUT_S

from fitb.base.fsio import read_json, read_lines
from fitb.cluster.sweep import plan_sweep
from fitb.rundir.events import read_events

pytestmark = pytest.mark.cluster


def test_sweep_of_four_with_one_preempted_and_one_killed_ends_with_a_row_for_each(
    cluster, real_run, shards
):
    grid = ["--grid.optim.lr", "[1e-3, 3e-3]", "--grid.objective.hidden", "[0, 1]"]
    flags = [*grid, "--steps", "40", "--track.wandb", "offline"]
    sweep = plan_sweep(["--run_dir", str(real_run.folder), *flags], "unused")
    runs = [real_run.folder / name for name in sweep.names()]
    job = replace(real_run, payload=replace(real_run.payload, tasks_per_node=1)).sbatch(
        "--nodes=1", "--array=0-3", flags=flags, script=ROOT / "slurm" / "sweep.sh"
    )

    def started(run):
        return (run / "metrics.jsonl").exists() and list(read_lines(run / "metrics.jsonl"))

    wait_until(lambda: all(map(started, runs[:2])), TIMEOUT_S, "the first steps of two runs")
    cluster("scancel", "--signal=TERM", f"{job}_0")
    (killed,) = (
        pid
        for host in cluster.hosts
        for pid in cluster.processes(host, *RANK)
        if str(runs[1]) in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    )
    os.kill(killed, signal.SIGKILL)
    for index in range(4):
        assert cluster.wait_end(f"{job}_{index}", TIMEOUT_S) == "COMPLETED"
    decided = [[e["event"] for e in read_events(run) if "stalled" in e] for run in runs]
    assert decided == [["requeue"], ["restart"], [], []]
    assert [read_json(run / "done.json")["job"] for run in runs] == [f"{job}_{i}" for i in range(4)]
    for run, group in zip(runs, [real_run.folder.name.encode()] * 4, strict=True):
        files = list((run / "wandb").glob("offline-run-*/run-*.wandb"))
        assert any(group in file.read_bytes() for file in files)  # a kill may leave an empty one
    command = [sys.executable, "-m", "fitb", "sweep", str(real_run.folder), "--shards", str(shards)]
    table = subprocess.run(
        [*command, "--rows", "64"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert all(run.name in table for run in runs) and "not finished" not in table
