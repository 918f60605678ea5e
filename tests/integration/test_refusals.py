"""Bad input: one line that says what to do, the right exit code, nothing half-written."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import job


def refusal(flags: list[str], run_dir: Path) -> str:
    """Run in one process, expect exit code 93, and return the one line of the error."""
    done = job.fitb("train", *flags, "--run_dir", str(run_dir))
    lines = [line for line in done.stderr.splitlines() if " ERROR " in line]
    assert done.returncode == 93, done.stderr
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert not list(run_dir.glob("checkpoints/*")) and not (run_dir / "export").exists()
    return lines[0]


def test_a_teacher_without_mlm_head_weights_is_refused_and_the_weights_named(
    quick_flags: list[str], teacher: Path, tmp_path: Path
) -> None:
    from transformers import BertForMaskedLM

    headless = tmp_path / "headless"
    shutil.copytree(teacher, headless)
    BertForMaskedLM.from_pretrained(teacher).bert.save_pretrained(headless)
    line = refusal([*quick_flags, "--model.teacher", str(headless)], tmp_path / "run")
    assert "cls.predictions" in line and "head" in line


def test_a_resume_under_a_changed_config_names_the_keys(
    quick_flags: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert job.fitb("train", *quick_flags, "--run_dir", str(run), "--steps", "2").returncode == 0
    before = job.state(run)
    done = job.fitb(
        "train", *quick_flags, "--run_dir", str(run), "--steps", "2", "--optim.lr", "0.5"
    )
    assert done.returncode == 93
    assert "optim.lr: 0.001 -> 0.5" in done.stderr
    assert job.steps(run) == [1, 2] and before.keys() == job.state(run).keys()
    may = ["--steps", "2", "--micro_batch", "8", "--track.project", "other", "--ds_config", "zero1"]
    assert job.fitb("train", *quick_flags, "--run_dir", str(run), *may).returncode == 0


def test_fp16_on_a_cpu_that_cannot_do_it_names_bf16_and_fp32(
    quick_flags: list[str], tmp_path: Path
) -> None:
    from deepspeed.accelerator import get_accelerator

    flags = [*quick_flags, "--precision", "fp16", "--steps", "2"]
    if get_accelerator().is_fp16_supported():
        assert job.run(flags, tmp_path / "run", 1) == 0
        assert job.metrics(tmp_path / "run")[-1]["optim/loss_scale"] > 1
    else:
        line = refusal(flags, tmp_path / "run")
        assert "bf16" in line and "fp32" in line


def test_a_deepspeed_file_that_sets_a_number_of_fitbs_is_refused(
    quick_flags: list[str], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}')
    line = refusal([*quick_flags, "--ds_config", str(mine)], tmp_path / "run")
    assert "gradient_clipping" in line and str(mine) in line


def test_no_space_while_saving_leaves_the_earlier_checkpoint_good(
    quick_flags: list[str], small_disk: Path
) -> None:
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
