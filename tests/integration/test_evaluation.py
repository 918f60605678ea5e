"""Evaluations by several real processes, and of real runs' checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import job
import pytest
import torch
from transformers import BertForMaskedLM

from fitb.cluster.local import LocalRun
from fitb.model.saved import load_saved

ROOT = Path(__file__).resolve().parents[2]


def without_times(value):
    """The same without how long it took."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k != "tokens_per_s"}
    return value


def in_ranks(words, size, output):
    """Run the command line in several processes; return what rank 0 printed, without times."""
    command = [sys.executable, "-m", "fitb", *words, "--json"]
    with open(output, "wb") as file, LocalRun(command, size, output=file) as run:
        assert run.wait(120) == 0, output.read_text()
    return printed(output.read_text())


def under_torchrun(words, size):
    """The same, where the output of all ranks is one."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(size), "-m", "fitb", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return printed(done.stdout)


def printed(text):
    (line,) = [line for line in text.splitlines() if line.startswith("{")]
    return without_times(json.loads(line))


@pytest.fixture(scope="module")
def other(teacher, tmp_path_factory):
    """A model that is not the teacher."""
    folder = tmp_path_factory.mktemp("models") / "other"
    model = BertForMaskedLM.from_pretrained(teacher)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(3)
    model.save_pretrained(folder)
    for path in teacher.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def test_one_two_and_three_ranks_evaluate_and_compare_to_the_same_bits(
    teacher, other, shards, tmp_path
):
    words = ["evaluate", "--model", str(other), "--frozen", str(teacher), "--shards", str(shards)]
    words += ["--teacher", str(teacher), "--rows", "90", "--batch", "16", "--masks", "2"]
    one = in_ranks(words, 1, tmp_path / "one")
    assert one == under_torchrun(words, 2) == in_ranks(words, 3, tmp_path / "three")
    assert one["sets"]["validation"]["num_rows"] == 90
    words = ["compare", str(other), str(teacher), "--shards", str(shards), "--rows", "50"]
    both = in_ranks(words, 1, tmp_path / "both")
    assert both == in_ranks(words, 2, tmp_path / "two")
    assert both["sets"]["validation"]["differences"]["loss"]["p"] < 1


def test_checkpoints_of_a_run_are_models(quick_flags, shards, tmp_path):
    run = tmp_path / "run"
    assert job.run([*quick_flags, "--eval.every_steps", "24"], run) == 0
    exported = BertForMaskedLM.from_pretrained(run / "export").state_dict()
    loaded = load_saved(run)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, exported[name]), name
    where = ["--shards", str(shards), "--rows", "40", "--out", str(tmp_path / "out"), "--json"]
    done = job.fitb("evaluate", "--models+", f"{run}/checkpoints/step-*", *where)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    steps = [f"{run}/checkpoints/step-00000{step}" for step in (20, 24)]
    assert list(found["models"]) == steps and found["missing"] == []
    alone = job.fitb("evaluate", "--model", str(run / "export"), *where[:-3], "--json")
    last = found["models"][steps[1]]
    assert last["metrics"] == json.loads(alone.stdout)["metrics"]
    assert last["metrics"] != found["models"][steps[0]]["metrics"]


def launched(flags, folder):
    """Run launch.evaluate in a folder, on this machine."""
    return subprocess.run(
        [sys.executable, "-m", "launch.evaluate", "--cluster", "local", *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_launched_tasks_share_models_and_the_launcher_prints_the_table(
    teacher, other, shards, tmp_path
):
    flags = ["--models", f"[{teacher}, {other}]", "--out", "out", "--shards", str(shards)]
    done = launched(
        ["--array", "2", "--wait", *flags, "--rows", "20", "--baselines=false"], tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("job ") == 2
    assert len(list((tmp_path / "out").glob("*.json"))) == 2
    table = done.stdout[done.stdout.index("validation split of") :]
    assert str(teacher) in table and str(other) in table


def test_a_launcher_refuses_what_no_task_could_do(tmp_path):
    done = launched(["--array", "3", "--model", "a"], tmp_path)
    assert done.returncode == 2 and "--array 3" in done.stderr
    assert not list(tmp_path.iterdir())
