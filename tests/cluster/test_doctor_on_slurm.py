"""`fitb doctor` beside a real Slurm: it answers, munge proves who asks, a job fits its hosts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.cluster


def test_a_real_slurm_is_found_with_its_version_partitions_and_settings(cluster, tmp_path):
    where = "--nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=1"
    command = [sys.executable, "-m", "fitb", "doctor", "--json", "--sbatch", where]
    env = cluster.env | {"PYTHONPATH": str(ROOT), "FITB_PYTHON": sys.executable}
    env |= {"WANDB_MODE": "offline"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    found = {check["name"]: check for check in json.loads(done.stdout)}
    slurm = found["slurm"]
    assert slurm["status"] == "ok" and "2 hosts in the largest" in slurm["found"], slurm
    version = cluster("sinfo", "--version").split()[1]
    partitions = set(cluster("sinfo", "--noheader", "--format=%R").split())
    assert slurm["found"].startswith(f"{version}; partitions ")
    named = slurm["found"].partition("partitions ")[2].partition(";")[0]
    assert set(named.split(", ")) == partitions
    assert found["munge"]["status"] == "ok"
    assert found["job shape"]["status"] == "ok", found["job shape"]
    assert found["PreemptMode"]["found"].startswith("REQUEUE: ")
    assert found["GraceTime"]["found"].startswith(f"{cluster.grace_s} s: ")
    assert found["ProctrackType"]["status"] == "warn"
