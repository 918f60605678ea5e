"""The end of a run is moved, and a decay branches from one of its checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import job
import pytest

WSD = ["--optim.schedule", "wsd"]


def until(flags: list[str], steps: int, *more: str) -> list[str]:
    return [*flags, *WSD, "--steps", str(steps), *more]


@pytest.fixture(scope="module")
def short_run(quick_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """15 steps at one rate."""
    folder = tmp_path_factory.mktemp("short") / "run"
    assert job.run(until(quick_flags, 15), folder, 1) == 0
    return folder


def test_a_run_whose_end_was_moved_is_bitwise_one_that_was_planned_as_long(
    quick_flags: list[str], short_run: Path, tmp_path: Path
) -> None:
    """Step 15 has a validation more, because it was the last one."""
    long_run, moved = tmp_path / "long", tmp_path / "run"
    assert job.run(until(quick_flags, 24), long_run, 1) == 0
    shutil.copytree(short_run, moved)
    assert job.run(until(quick_flags, 24), moved, 1) == 0
    assert job.differing(long_run, moved) == []
    assert job.steps(moved) == list(range(1, 25))
    assert all(name.startswith("val/") for name in job.unlike(long_run, moved))
    assert "steps: 24\n" in (moved / "config.yaml").read_text()


def test_a_decay_branches_into_a_run_of_its_own_and_ends_where_a_planned_one_ends(
    quick_flags: list[str], short_run: Path, tmp_path: Path
) -> None:
    decay, planned, branch = ["--optim.decay_steps", "5"], tmp_path / "planned", tmp_path / "branch"
    assert job.run(until(quick_flags, 20, *decay), planned, 1) == 0
    kept = [step.name for step in sorted((planned / "checkpoints").glob("step-*"))]
    assert "step-0000015" in kept  # saved and kept, to branch from
    before = sorted(path.stat().st_mtime_ns for path in short_run.rglob("*"))
    source = ["--branch_from", str(short_run)]
    assert job.run(until(quick_flags, 20, *decay, *source), branch, 1) == 0
    assert job.differing(planned, branch) == []
    assert job.steps(branch) == [16, 17, 18, 19, 20]
    assert job.events(branch, "branch")[0]["step"] == 15
    assert sorted(path.stat().st_mtime_ns for path in short_run.rglob("*")) == before
    rates = [record["optim/lr"] for record in job.metrics(branch)]
    assert rates[0] == 1e-3 and rates == sorted(rates, reverse=True) and rates[-1] < 2e-4

    refused = job.fitb("train", *until(quick_flags, 30, *decay), "--run_dir", str(planned))
    assert refused.returncode == 93
    assert f"--branch_from {planned / 'checkpoints' / 'step-0000015'}" in refused.stderr
    late = job.fitb("train", *until(quick_flags, 18, *decay, *source), "--run_dir", f"{tmp_path}/x")
    assert (late.returncode, "--steps 20" in late.stderr) == (93, True)
