"""What earlier versions left behind is read, and goes on as it would have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import job
import pytest
import torch
from fixtures.make import digests_of_masks
from traced import rows_of_steps

OLD = Path(__file__).resolve().parents[1] / "fixtures" / "cffd92f"
ROUNDING = 1e-4  # between processors; ranks, rows, masks and rates have none


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy of the files, which is the working directory."""
    copy = Path(shutil.copytree(OLD, tmp_path / "old"))
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize(
    ("preempted", "finished"),
    [
        *((f"preempted-zero{stage}", "finished") for stage in (1, 2, 3)),
        ("preempted-span", "finished-span"),
    ],
)
def test_a_preempted_run_goes_on_with_the_rows_masks_and_rates_it_began_with(
    old, preempted, finished
):
    """It was told to leave at step 10; another one was not."""
    run, straight = old / "runs" / preempted, old / "runs" / finished
    flags = ["--config", str(run / "config.yaml")]
    assert job.run(flags, run, program=job.TRACED) == 0
    assert [event["step"] for event in job.events(run, "resume")] == [10]
    assert rows_of_steps(run) == rows_of_steps(straight)
    assert job.steps(run) == job.steps(straight) == list(range(1, 21))
    for ours, theirs in zip(job.metrics(run), job.metrics(straight), strict=True):
        assert ours["optim/lr"] == theirs["optim/lr"]
        for key in theirs:
            if key.startswith(("mask/", "student/loss", "distill/", "val/loss", "weighted/")):
                assert ours[key] == pytest.approx(theirs[key], rel=ROUNDING), key
    if finished == "finished":  # of the other one no checkpoint is kept
        torch.testing.assert_close(job.state(run), job.state(straight), rtol=ROUNDING, atol=1e-5)


def test_a_finished_run_is_over(old):
    run = old / "runs" / "finished"
    before = (run / "metrics.jsonl").read_bytes()
    assert job.run(["--config", str(run / "config.yaml")], run) == 0
    assert (run / "metrics.jsonl").read_bytes() == before


def test_masks_are_those_of_the_version_that_began_the_run(old):
    assert digests_of_masks(version=1) == json.loads((old / "masks.json").read_text())


@pytest.mark.parametrize("name", ["shards", "documents"])
def test_shards_are_read(old, name):
    inspected = job.fitb("inspect", name, "--json")
    assert inspected.returncode == 0, inspected.stderr


@pytest.mark.parametrize("backend", ["torch", "onnx", "onnx-int8"])
def test_an_export_fills_as_it_did(old, backend):
    from fitb.infer.fill import fill_from
    from fitb.infer.fill_config import FillConfig

    written = json.loads((old / "filled.json").read_text())
    texts = [one["text"] for one in written]
    filled = fill_from(FillConfig(model="export", texts=texts, backend=backend))
    for ours, theirs in zip(filled, written, strict=True):
        best = theirs["fillings"][0]
        if backend == "torch":
            assert ours.fillings[0].sentence == best["sentence"]
            assert ours.fillings[0].log_probability == pytest.approx(
                best["log_probability"], abs=ROUNDING
            )
        assert len(ours.fillings) == len(theirs["fillings"])


def test_an_evaluation_is_read_and_gives_the_same_numbers_again(old):
    written = json.loads((old / "evaluation.json").read_text())
    models = ("--model", "runs/finished", "--teacher", "teacher", "--shards", "shards")
    done = job.fitb("evaluate", *models, "--resamples", "50", "--json")
    assert done.returncode == 0, done.stderr
    now = json.loads(done.stdout)
    for role, theirs in written["sets"]["validation"]["models"].items():
        ours = now["sets"]["validation"]["models"][role]
        for name in ("loss", "top1", "top5", "ece"):
            assert ours["metrics"][name]["value"] == pytest.approx(
                theirs["metrics"][name]["value"], rel=ROUNDING
            ), (role, name)


def test_a_run_can_be_exported_and_reported(old):
    for words in (
        ("export", "runs/preempted-zero3", "--out", "again"),
        ("report", "runs/finished", "--evaluations+=evaluation.json", "--blanks", "0"),
        ("status", "runs/preempted-zero1"),
    ):
        done = job.fitb(*words)
        assert done.returncode == 0, (words, done.stderr)
