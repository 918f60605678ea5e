"""A host that is cut off works on, while Slurm starts its job elsewhere: it can harm nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, Payload, Run
from machine import run, wait_until
from slurm_cluster import Cluster
from small import quick
from soak import SITE, weights
from test_real_training import steps, wait_for_step

from fitb.base.fsio import read_lines
from fitb.cluster.local import LocalRun, train_command

pytestmark = pytest.mark.cluster

STEPS = 200


def trainings(host: str) -> list[int]:
    """Processes of a training on a host."""
    pids = run("ip", "netns", "pids", host).split()
    found = [int(pid) for pid in pids if psutil.pid_exists(int(pid))]
    return [pid for pid in found if psutil.Process(pid).cmdline()[1:4] == ["-m", "fitb", "train"]]


def test_an_attempt_on_a_host_that_was_cut_off_cannot_write_into_the_run_it_has_lost(
    cluster: Cluster, shards: Path, teacher: Path, tmp_path: Path
) -> None:
    flags = quick(shards, teacher, steps=STEPS, checkpoint_every=20, eval_every=0)
    command = train_command([*flags, "--run_dir", str(tmp_path / "straight")])
    with LocalRun(command, 1, env={"OMP_NUM_THREADS": "1"}) as straight:
        assert straight.wait(300) == 0
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    path = f"{tmp_path / 'site'}:{ROOT}:{ROOT / 'tests'}"
    env = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    payload = Payload(sys.executable, "fitb.training.loop:train", flags, env, STEPS)
    job = Run(cluster, payload, tmp_path / "run")
    number = job.sbatch("--nodes=1")
    wait_for_step(job, 5)
    (cut,) = job.events("attempt")[0]["hosts"]
    run("ip", "-n", cut, "link", "set", "eth0", "down")
    try:
        cluster.wait_restart(number)
        assert trainings(cut), "the old attempt lives on"
        saved = job.saved()
        cluster.hurry(number)
        wait_until(lambda: len(job.events("attempt")) == 2, 60, "the next attempt")
        wait_until(lambda: not trainings(cut), 60, "the end of the old attempt")
        assert cluster.wait_end(number) == "COMPLETED", job.logs()
    finally:
        run("ip", "-n", cut, "link", "set", "eth0", "up")
    first, second = job.events("attempt")
    assert first["hosts"] == [cut] != second["hosts"]
    assert (second["job"], second["restart"]) == (first["job"], 1)
    assert job.events("resume")[0]["step"] >= saved > 0
    assert "has been replaced by a later one" in job.logs()
    events = list(read_lines(job.folder / "events.jsonl"))
    assert {e["attempt"] for e in events[events.index(second) :] if "attempt" in e} == {2}
    assert steps(job) == list(range(1, STEPS + 1))
    assert weights(job.folder) == weights(tmp_path / "straight")
    wait_until(lambda: cluster("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "low") == "2", 60, "")
