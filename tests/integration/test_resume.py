"""Stop anywhere, start the same command again: the run is the one that was never stopped."""

from __future__ import annotations

import json
import signal

import job
import pytest
import torch
from safetensors.torch import load_file
from small import STUDENT
from traced import rows_of_steps


@pytest.fixture(scope="module")
def straight(quick_flags, tmp_path_factory):
    """A run of two ranks that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert job.run(quick_flags, folder) == 0
    return folder


def test_two_resumes_in_one_epoch_end_bitwise_where_an_uninterrupted_run_ends(
    straight, quick_flags, tmp_path
):
    run = tmp_path / "run"
    assert job.run_and_signal(quick_flags, run, signal.SIGUSR1, at_step=4, rank=1) == 85
    assert job.run_and_signal(quick_flags, run, signal.SIGTERM, at_step=14, rank=None) == 85
    assert job.run(quick_flags, run) == 0
    job.assert_same(straight, run)
    assert job.steps(run) == list(range(1, 25))
    stops = [event["step"] for event in job.events(run, "stop")]
    assert stops[-1] == 24 and 4 <= stops[0] < stops[1] < 24
    assert [event["step"] for event in job.events(run, "resume")] == stops[:2]


SLOW_VALIDATION = """
import os, sys, time
from pathlib import Path
from fitb.training import milestones
count, milestones._EVAL_BATCH = milestones.count, 8
def slow(*args, **kwargs):
    Path(os.environ["BATCHES"]).open("a").write("batch\\n")
    time.sleep(0.2)
    return count(*args, **kwargs)
milestones.count = slow
from fitb.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_validation_is_left_at_a_batchs_end_and_begun_again_with_the_same_result(
    straight, quick_flags, tmp_path
):
    """The first one, and that of the last step, after which a run would be finished."""
    run, batches = tmp_path / "run", tmp_path / "batches"
    command = job.command(quick_flags, run, ("-c", SLOW_VALIDATION))
    of_one = 64 // 8  # batches of both ranks
    for step, begun in ((8, 2), (24, 2 + 2 * of_one)):
        batches.write_text("")
        with job.LocalRun(command, 2, env={"BATCHES": str(batches)}) as ranks:
            while len(batches.read_text().split()) < begun:
                assert ranks.running()
            ranks.signal(signal.SIGUSR1, 1)
            assert ranks.wait(job.TIMEOUT_S) == 85
        assert len(batches.read_text().split()) < begun - 2 + of_one
        assert job.events(run, "stop")[-1]["step"] == step and step not in job.steps(run)
    assert job.run(quick_flags, run) == 0
    job.assert_same(straight, run)
    assert job.steps(run) == list(range(1, 25))


def test_saves_by_the_clock_change_nothing(straight, quick_flags, tmp_path):
    flags = [*quick_flags, "--checkpoint.every_steps", "null", "--checkpoint.every_min", "0.005"]
    assert job.run(flags, tmp_path / "run") == 0
    job.assert_same(straight, tmp_path / "run")
    assert len(job.events(tmp_path / "run", "save")) > 2


def test_a_killed_rank_costs_no_more_than_the_steps_since_the_last_checkpoint(
    straight, quick_flags, tmp_path
):
    run = tmp_path / "run"
    assert job.run_and_signal(quick_flags, run, signal.SIGKILL, at_step=13, rank=1) not in (0, 85)
    assert job.run(quick_flags, run) == 0
    assert job.events(run, "resume")[0]["step"] in (0, 10)  # the save of step 10 may be in flight
    assert job.differing(straight, run) == []
    assert job.steps(run) == list(range(1, 25))  # replayed steps are not logged twice


@pytest.mark.parametrize(
    ("stage", "precision"),
    [("zero1", "fp32"), ("zero2_offload", "fp32"), ("zero3", "fp32"), ("zero2", "bf16")],
)
def test_zero_stages_agree_and_each_resumes_bitwise(
    straight, quick_flags, tmp_path, stage, precision
):
    flags = [*quick_flags, "--ds_config", stage, "--precision", precision]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert job.run(flags, whole) == 0
    assert job.run_and_signal(flags, resumed, signal.SIGUSR2, at_step=5, rank=0) == 85
    assert job.run(flags, resumed) == 0
    assert job.differing(whole, resumed) == []
    for ours, theirs in zip(job.metrics(straight), job.metrics(whole), strict=True):
        for name in ("train/loss", "student/loss_mlm", "distill/total", "optim/grad_norm"):
            if precision == "fp32":
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name


@pytest.fixture(scope="module")
def alone(quick_flags, tmp_path_factory):
    """A run of one process that takes each global batch whole, without dropout."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    flags = [*quick_flags, "--model.dropout", "0", "--micro_batch", "16"]
    assert job.run(flags, folder, 1, program=job.TRACED) == 0
    return folder


def agree(reference, run, rel):
    """Every metric of every step, speed and the places of ties apart."""
    for ours, theirs in zip(job.metrics(reference), job.metrics(run), strict=True):
        of_ranks = {"perf/slowest_rank", "perf/slowest_rank_ms"}  # one rank has none
        assert ours.keys() - of_ranks == theirs.keys() - of_ranks
        for key, value in ours.items():
            if not key.startswith((*job.OF_TIME, "val/top", "val/span")):
                assert theirs[key] == pytest.approx(value, rel=rel, abs=1e-7), key


def test_accumulation_does_not_change_the_loss(alone, quick_flags, tmp_path):
    flags = [*quick_flags, "--model.dropout", "0", "--micro_batch", "3"]  # which divides nothing
    assert job.run(flags, tmp_path / "accumulated", 1) == 0
    agree(alone, tmp_path / "accumulated", rel=1e-5)


def test_a_run_that_goes_on_at_other_sizes_and_zero_stages_reads_and_learns_the_same(
    alone, quick_flags, tmp_path
):
    """2 ranks, 1, 4, then 3, whose shares of 16 rows are not equal; micro-batches of 4 at most."""
    run = tmp_path / "run"
    flags = [*quick_flags, "--model.dropout", "0"]
    for size, stage, until in ((2, "zero1", 4), (1, "zero2", 10), (4, "zero3", 15)):
        part = [*flags, "--ds_config", stage]
        code = job.run_and_signal(
            part, run, signal.SIGUSR1, at_step=until, rank=0, size=size, program=job.TRACED
        )
        assert code == 85
    assert job.run([*flags, "--ds_config", "zero2"], run, 3, program=job.TRACED) == 0
    assert [event["world_size"] for event in job.events(run, "attempt")] == [2, 1, 4, 3]
    stops = [event["step"] for event in job.events(run, "stop")]
    assert [event["step"] for event in job.events(run, "resume")] == stops[:3] == sorted(stops)[:3]
    assert stops[3] == 24
    rows = rows_of_steps(run)
    assert rows == rows_of_steps(alone)
    assert sorted(rows) == list(range(1, 25)) and {len(read) for read in rows.values()} == {16}
    agree(alone, run, rel=1e-4)


def test_a_time_budget_asks_to_be_started_again_and_another_precision_goes_on(
    quick_flags, tmp_path
):
    run = tmp_path / "run"
    flags = [*quick_flags, "--checkpoint.every_steps", "1", "--steps", "12"]
    assert job.run([*flags, "--stop.time_budget_min", "0.0"], run, 1) == 85
    assert job.events(run, "stop")[-1]["reason"] == "time budget"
    assert job.run([*flags, "--precision", "bf16"], run, 1) == 0
    assert job.steps(run) == list(range(1, 13))


def test_early_stopping_finishes_and_keeps_the_best_student(quick_flags, tmp_path):
    flags = [*quick_flags, "--optim.lr", "1.0", "--optim.clip_norm", "0", "--eval.patience", "1"]
    flags += ["--eval.every_steps", "2"]
    assert job.run(flags, tmp_path / "run", 1) == 0
    stop = job.events(tmp_path / "run", "stop")[-1]
    assert stop["reason"] == "early stopping" and stop["step"] < 24
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()


def test_the_export_is_a_hugging_face_folder_that_holds_the_final_weights(straight):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = AutoModelForMaskedLM.from_pretrained(straight / "export")
    tokenizer = AutoTokenizer.from_pretrained(straight / "export")
    assert tokenizer.mask_token_id is not None
    best = json.loads((job.newest(straight) / "manifest.json").read_text())["best_step"]
    if best == 24:
        final = job.state(straight)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, final[f"param/student.model.{name}"]), name
    assert model.config.trained_length == tokenizer.model_max_length == 64
    card = (straight / "export" / "README.md").read_text()
    assert f"| step | {best} of 24 |" in card


def test_a_student_begins_with_the_positions_of_its_teacher_and_learns_those_of_its_rows(
    quick_flags, teacher, tmp_path
):
    run = tmp_path / "run"
    flags = [*quick_flags, "--steps", "2", "--model.positions", "teacher", "--run_dir", str(run)]
    done = job.fitb("train", *flags, "--model.student", STUDENT.replace("32", "64"))
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        load_file(folder / "model.safetensors")["bert.embeddings.position_embeddings.weight"]
        for folder in (run / "export", teacher)
    )
    alike = torch.nn.functional.cosine_similarity(ours, theirs)
    assert alike.min() > 0.9 and alike[64:].min() > 0.999  # it began there; two steps moved it
    assert not torch.equal(ours[:64], theirs[:64])
