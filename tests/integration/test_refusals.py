"""Bad input: one line that says what to do, the right exit code, nothing half-written."""

from __future__ import annotations

import shutil
import subprocess

import job
import pytest


def headless(folder, teacher):
    from transformers import AutoTokenizer, BertForMaskedLM

    BertForMaskedLM.from_pretrained(teacher).bert.save_pretrained(folder / "headless")
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder / "headless")
    return ("--model.teacher", str(folder / "headless"))


def in_fp16(folder, teacher):
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().is_fp16_supported():
        pytest.skip("this CPU computes fp16")
    return ("--precision", "fp16")


def with_a_number_of_fitbs(folder, teacher):
    mine = folder / "mine.json"
    mine.write_text('{"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}')
    return ("--ds_config", str(mine))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (headless, ("cls.predictions", "head")),
        (in_fp16, ("bf16", "fp32")),
        (with_a_number_of_fitbs, ("gradient_clipping", "mine.json")),
    ],
)
def test_training_is_refused_in_one_line_with_code_93_and_leaves_nothing_half_written(
    quick_flags, teacher, tmp_path, make, words
):
    run = tmp_path / "run"
    done = job.fitb("train", *quick_flags, *make(tmp_path, teacher), "--run_dir", str(run))
    lines = [line for line in done.stderr.splitlines() if " ERROR " in line]
    assert done.returncode == 93, done.stderr
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert all(word in lines[0] for word in words)
    assert not list(run.glob("checkpoints/*")) and not (run / "export").exists()


def test_no_space_while_saving_leaves_the_earlier_checkpoint_good(quick_flags, small_disk):
    run = small_disk / "run"
    flags = [*quick_flags, "--eval.every_steps", "0", "--checkpoint.every_steps", "4"]
    room = ["--checkpoint.keep_last", "9"]
    done = job.fitb("train", *flags, *room, "--run_dir", str(run))
    assert done.returncode == 1, done.stderr
    assert "no space left" in done.stderr and "Traceback" not in done.stderr
    kept = job.newest(run).name
    assert not list((run / "checkpoints").glob("*.tmp"))
    for old in (run / "checkpoints").glob("step-*"):
        if old.name != kept:
            shutil.rmtree(old)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert job.fitb("train", *flags, *room, "--run_dir", str(run)).returncode == 0
    assert job.events(run, "resume")[-1]["checkpoint"] == kept
    assert job.steps(run)[-1] == 24 and len(set(job.steps(run))) == len(job.steps(run))
