"""The other commands and launchers, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import job
import pytest

from fitb import cli
from fitb.cluster.local import hold_port


def test_deepspeeds_own_launcher_starts_the_same_job(quick_flags, tmp_path):
    """It puts --local_rank=N behind the module's name: before the command."""
    run = tmp_path / "run"
    flags = [*quick_flags, "--steps", "2", "--run_dir", str(run)]
    with hold_port() as held:
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
        launcher += ["--master_port", str(held.getsockname()[1]), "--module", "fitb", "train"]
        env = os.environ | {"DS_ACCELERATOR": "cpu"}
        done = subprocess.run([*launcher, *flags], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert job.events(run, "attempt")[0]["world_size"] == 2
    assert job.steps(run) == [1, 2]


def test_a_teacher_is_trained_and_evaluated_as_its_training_validated_it(
    quick_flags, shards, tmp_path
):
    run = tmp_path / "run"
    done = job.fitb("train", *quick_flags, "--model.teacher", "null", "--run_dir", str(run))
    assert done.returncode == 0, done.stderr
    last = job.metrics(run)[-1]
    assert last["train/loss"] == last["student/loss_mlm"] and "distill/total" not in last
    where = ["--model", str(run / "export"), "--shards", str(shards)]
    first, again = (job.fitb("evaluate", *where, "--rows", "64", "--json") for _ in range(2))
    assert first.returncode == 0, first.stderr
    a, b = json.loads(first.stdout), json.loads(again.stdout)
    assert a["metrics"] == b["metrics"]
    assert a["metrics"]["loss"]["value"] == pytest.approx(last["val/loss_mlm"], rel=1e-5)


def test_the_demo_in_miniature_walks_the_whole_road(tmp_path, capfd):
    """In this process, so that its ranks are forked."""
    out = tmp_path / "demo"
    words = ["demo", "--out", str(out), "--max_mb", "0.5", "--vocab_size", "600"]
    code = cli.main([*words, "--teacher_steps", "6", "--steps", "12", "--rows", "64", "--full"])
    told = capfd.readouterr()
    assert code == 0, told.err
    summary = json.loads((out / "summary.json").read_text())
    names = ["teacher", "student", "control", "control_equal_compute", "untrained"]
    assert list(summary["models"]) == names
    for model in summary["models"].values():
        assert {"params", "loss", "ppl", "top1", "top5", "span_em"} <= model.keys()
    assert summary["attempts"] == 2 and summary["seconds"] > 0 and summary["tokens_per_s"] > 0
    assert summary["compute_ratio"] > 1 and summary["peak_memory_gb"] > 0
    stages = ["shards", "teacher", "student", "control", "control_equal_compute", "evaluation"]
    assert list(summary["stages"]) == stages
    top1 = {name: model["top1"] for name, model in summary["models"].items()}
    assert summary["retention"] == top1["student"] / top1["teacher"]
    assert summary["models"]["control_equal_compute"]["steps"] > 12
    assert "control_equal_compute" in told.out and "[MASK]" not in told.out.split("==")[-1]
    assert cli.main([*words, "--full", "--steps", "13"]) == 2  # another demo
    assert f"steps=12; name a new folder: fitb demo --out {out}-2 --full" in capfd.readouterr().err


def test_a_reader_that_goes_away_gets_no_traceback(shards):
    command = f"{sys.executable} -m fitb inspect {shards} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr
