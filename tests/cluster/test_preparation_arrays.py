"""Preparation as arrays on a real Slurm of two hosts, killed midway, against one process."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT
from machine import wait_until

from fitb.base.errors import DataError
from fitb.base.fsio import read_json
from fitb.config.parser import parse
from fitb.corpus.prepare import prepare
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.work import folder_of

pytestmark = pytest.mark.cluster

# The first time, the task that writes this shard stops in the middle of its work.
HELD = """
import os, time
from pathlib import Path
from fitb.corpus import stages
write = stages._write_piece
def held(work, shard):
    if shard.index == 5 and not Path(os.environ["HELD"]).exists():
        Path(os.environ["HELD"]).touch()
        time.sleep(600)
    write(work, shard)
stages._write_piece = held
"""


# About a megabyte of docstrings in some ten shards, near-duplicates dropped.
FLAGS = ["--max_mb", "1.0", "--vocab_size", "600", "--length", "64", "--shard_mb", "0.1"]
FLAGS += ["--near_duplicates", "0.8"]


def config_of(out):
    return parse(PrepareConfig, "fitb prepare", ["--out", str(out), "--workers", "1", *FLAGS])


def submitted(cluster, out, log, env):
    """Submit slurm/prepare.sh and return the job ids of the stages; two tasks fit on no host."""
    job = cluster.sbatch(
        f"--output={log}",
        ROOT / "slurm" / "prepare.sh",
        *("--tasks", "2", "--cpus_per_task", "40", "--mem_per_cpu_gb", "0", "--time_min", "10"),
        *("--out", out, *FLAGS),
        env={"FITB_PYTHON": sys.executable, **env},
        cwd=ROOT,
    )
    assert cluster.wait_end(job) == "COMPLETED", log.read_text()
    return dict(read_json(folder_of(config_of(out)) / "jobs.json"))


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_arrays_on_two_hosts_killed_midway_give_the_bytes_of_one_process(
    cluster, tmp_path, monkeypatch
):
    (tmp_path / "sitecustomize.py").write_text(HELD)
    held = tmp_path / "held"
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "HELD": str(held)}
    out, log = tmp_path / "arrays", tmp_path / "submit.out"
    jobs = submitted(cluster, out, log, env)
    assert list(jobs) == ["read", "sign", "buckets", "cluster", "tokenizer", "write", "finish"]
    work = folder_of(config_of(out))
    wait_until(lambda: held.exists(), 240, "the write stage")
    tasks = cluster("scontrol", "show", "job", "-o", jobs["read"]).split()
    assert len({word for word in tasks if word.startswith("NodeList=fitb")}) == 2
    with pytest.raises(AssertionError, match="is being made by Slurm jobs"):
        submitted(cluster, out, tmp_path / "twin.out", env)
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    with pytest.raises(DataError, match="is being made by Slurm jobs"):
        prepare(config_of(out))
    wait_until(lambda: len(list((work / "pieces").glob("*.json"))) >= 6, 120, "other shards")
    cluster("scancel", "--signal=KILL", f"{jobs['write']}_1")
    wait_until(lambda: cluster.state(jobs["finish"]) == "CANCELLED", 60, "the end of the chain")
    assert not out.exists()
    before = {path.name: path.stat().st_ino for path in (work / "set").glob("*.arrow")}
    pieces = {path.stem for path in (work / "pieces").glob("*.json")}
    assert "train-00005" not in pieces

    again = submitted(cluster, out, tmp_path / "again.out", env)
    assert list(again) == ["write", "finish"]
    assert cluster.wait_end(again["finish"]) == "COMPLETED", cluster.daemon_logs()
    after = {path.name: path.stat().st_ino for path in out.glob("*.arrow")}
    assert all(after[f"{name}.arrow"] == before[f"{name}.arrow"] for name in pieces)

    twice = submitted(cluster, out, tmp_path / "twice.out", env)
    assert cluster.wait_end(twice["finish"]) == "COMPLETED", cluster.daemon_logs()
    assert {path.name: path.stat().st_ino for path in out.glob("*.arrow")} == after

    prepare(config_of(tmp_path / "alone"))
    assert contents(out) == contents(tmp_path / "alone")
    assert len(after) > 16
