"""Checkpoints evaluated as an array on a real Slurm of two hosts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from transformers import BertForMaskedLM

from fitb.base.fsio import read_json
from fitb.evaluation.evaluate import evaluate
from fitb.evaluation.evaluate_config import EvaluateConfig

pytestmark = pytest.mark.cluster


def submit(cluster, log, flags, *options):
    """Submit slurm/evaluate.sh and return the job id."""
    return cluster.sbatch(
        *(*options, "--gpus-per-node=0", "--cpus-per-task=1", f"--output={log}"),
        ROOT / "slurm" / "evaluate.sh",
        *flags,
        env={"FITB_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )


def test_tasks_of_an_array_share_models_and_do_nothing_twice(cluster, shards, teacher, tmp_path):
    model = BertForMaskedLM.from_pretrained(teacher)
    for step in range(3):
        model.bert.embeddings.word_embeddings.weight.data.mul_(2)
        model.save_pretrained(tmp_path / "models" / f"step-{step}")
        for path in teacher.glob("tokenizer*"):
            shutil.copy(path, tmp_path / "models" / f"step-{step}")
    flags = ["--models+", f"{tmp_path}/models/step-*", "--out", str(tmp_path / "out")]
    flags += ["--shards", str(shards), "--rows", "8", "--baselines=false"]
    job = submit(cluster, f"{tmp_path}/log.%a", flags, "--array=0-2")
    for task in range(3):
        state = cluster.wait_end(f"{job}_{task}")
        assert state == "COMPLETED", (tmp_path / f"log.{task}").read_text()
    files = sorted((tmp_path / "out").iterdir())
    found = [read_json(path)["metrics"]["loss"]["value"] for path in files]
    assert [path.name[:13] for path in files] == [f"models-step-{step}" for step in range(3)]
    assert len(set(found)) == 3
    before = [path.stat().st_mtime_ns for path in files]

    launcher = [sys.executable, "-m", "launch.evaluate", "--cluster", "slurm", "--array", "3"]
    done = subprocess.run(
        [*launcher, "--cpus_per_task", "1", "--wait", *flags],
        env={**cluster.env, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert len({line.split(",")[0] for line in done.stdout.splitlines() if line[:4] == "job "}) == 3
    assert all(f"{tmp_path}/models/step-{step} " in done.stdout for step in range(3))
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").iterdir())] == before


def test_tasks_on_two_hosts_evaluate_as_one_process_does(cluster, shards, teacher, tmp_path):
    flags = ["--model", str(teacher), "--shards", str(shards), "--rows", "24", "--batch", "8"]
    flags += ["--baselines=false", "--json"]
    job = submit(cluster, f"{tmp_path}/log", flags, "--nodes=2", "--ntasks=2")
    assert cluster.wait_end(job) == "COMPLETED", (tmp_path / "log").read_text()
    lines = (tmp_path / "log").read_text().splitlines()
    (together,) = [json.loads(line) for line in lines if line.startswith("{")]
    config = EvaluateConfig(
        model=str(teacher), shards=str(shards), rows=24, batch=8, baselines=False
    )
    for name, interval in evaluate(config)["metrics"].items():  # maybe on other numbers of threads
        assert together["metrics"][name] == pytest.approx(interval, rel=1e-5), name
