"""The real training job on a real Slurm of two hosts: interrupted, it ends where it would have."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Payload, Run
from machine import wait_until
from slurm_cluster import Cluster

from fitb.base.fsio import read_lines, sha256_file
from fitb.cluster.local import LocalRun, train_command

pytestmark = pytest.mark.cluster

STEPS = 80
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def payload(quick_flags: list[str]) -> Payload:
    # Validation is not what is tested here.
    changed = {"--steps": str(STEPS), "--eval.every_steps": "0", "--checkpoint.every_steps": "10"}
    flags = dict(zip(quick_flags[::2], quick_flags[1::2], strict=True)) | changed
    words = [word for flag in flags.items() for word in flag]
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return Payload(sys.executable, "fitb.training.loop:train", words, env, STEPS)


@pytest.fixture(scope="module")
def straight(payload: Payload, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks on this machine that nothing interrupted."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    command = train_command([*payload.flags, "--run_dir", str(folder)])
    with LocalRun(command, 2, env=payload.env) as run:
        assert run.wait(TIMEOUT_S) == 0
    return folder


@pytest.fixture
def run(cluster: Cluster, payload: Payload, tmp_path: Path) -> Run:
    return Run(cluster, payload, tmp_path / "run")


def result(run_dir: Path) -> dict[str, str]:
    """File -> hash of the newest checkpoint's tensors."""
    folder = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return {file.name: sha256_file(file) for file in files}


def steps(run: Run) -> list[int]:
    return [record["train/step"] for record in read_lines(run.folder / "metrics.jsonl")]


def wait_for_step(run: Run, step: int) -> None:
    wait_until(lambda: steps(run)[-1:] >= [step], TIMEOUT_S, f"step {step}")


RANK = ("-m", "fitb", "train")
TORCHRUN_RANK = ("-u", *RANK)
SUBMITIT_RANK = ("-u", "-m", "submitit.core._submit")


def ranks(run: Run, words: tuple[str, ...]) -> list[int]:
    found = [pid for host in run.cluster.hosts for pid in run.cluster.processes(host, *words)]
    assert len(found) == 2
    return found


@contextlib.contextmanager
def standing_still(run: Run, words: tuple[str, ...] = RANK) -> Iterator[None]:
    """Let no rank make a step from here until the signal that the block sends has reached it.

    Slurm takes seconds for a preemption, in which a fast machine would make all steps.
    """
    pids = ranks(run, words)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    yield
    wait_until(lambda: all(map(signalled, pids)), 60, "the signal")
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def signalled(pid: int) -> bool:
    """Whether SIGUSR1 or SIGTERM waits for a stopped process, or it goes on again."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    waiting = int(fields["ShdPnd"], 16) & (1 << signal.SIGUSR1 - 1 | 1 << signal.SIGTERM - 1)
    return bool(waiting) or not fields["State"].startswith("T")


def test_preempted_sbatch_job_ends_bitwise_where_an_uninterrupted_run_ends(
    straight: Path, run: Run
) -> None:
    job = run.sbatch()
    wait_for_step(run, 5)
    with standing_still(run):
        run.cluster.preempt()
    run.cluster.wait_restart(job)
    assert run.cluster.wait_end(job, TIMEOUT_S) == "COMPLETED", run.logs()
    assert run.cluster.show(job)["Restarts"] == "1"
    (resume,) = run.events("resume")
    (requeue,) = run.events("requeue")
    assert 5 <= resume["step"] == requeue["step"] < STEPS
    assert len(run.events("attempt")[1]["hosts"]) == 2
    assert steps(run) == list(range(1, STEPS + 1))
    assert result(run.folder) == result(straight)


def test_sbatch_job_at_its_time_limit_ends_bitwise_where_an_uninterrupted_run_ends(
    straight: Path, run: Run
) -> None:
    # Slurm looks at limits, whole minutes, every 30 s. Until then no step is made, however fast the
    # machine is: the limit is set, and the steps stand still, once some were made.
    job = run.sbatch("--time=30", "--signal=B:USR1@110")
    wait_for_step(run, 5)
    run.cluster("scancel", "--signal=STOP", job)
    run_s = run.cluster.run_time_s(job)
    run.cluster("scontrol", "update", f"JobId={job}", f"TimeLimit={math.ceil((run_s + 45) / 60)}")
    wait_until(lambda: "stop signal received" in run.batch_log.read_text(), 60, "the warning")
    run.cluster("scancel", "--signal=CONT", job)
    run.cluster.wait_restart(job, timeout_s=TIMEOUT_S)
    run.cluster("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    assert run.cluster.wait_end(job, TIMEOUT_S) == "COMPLETED", run.logs()
    assert run.events("requeue")[0]["exit_code"] == 85, run.logs()
    (resume,) = run.events("resume")
    assert 5 <= resume["step"] < STEPS
    assert steps(run) == list(range(1, STEPS + 1))
    assert result(run.folder) == result(straight)


def test_run_begun_by_sbatch_and_preempted_under_submitit_ends_bitwise_the_same(
    straight: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run.sbatch()
    wait_for_step(run, 5)
    with standing_still(run):
        run.cluster("scancel", job)
    run.cluster.wait_state(job, "CANCELLED")
    assert run.events("requeue") == []
    second = run.submitit(monkeypatch, "--time_min", "30").job_id
    wait_for_step(run, run.saved() + 5)
    with standing_still(run, SUBMITIT_RANK):
        run.cluster.preempt()
    run.cluster.wait_restart(second)
    assert run.cluster.wait_end(second, TIMEOUT_S) == "COMPLETED", run.logs()
    stops = [event["step"] for event in run.events("stop")]
    assert [event["step"] for event in run.events("resume")] == stops[:2]
    assert steps(run) == list(range(1, STEPS + 1))
    assert result(run.folder) == result(straight)


def test_submitit_job_one_of_whose_ranks_is_killed_ends_bitwise_the_same(
    straight: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run.submitit(monkeypatch, "--time_min", "30").job_id
    wait_for_step(run, 15)
    first, last = ranks(run, SUBMITIT_RANK)
    os.kill(first, signal.SIGSTOP)
    os.kill(last, signal.SIGKILL)
    os.kill(first, signal.SIGCONT)
    run.cluster.wait_restart(job)
    assert run.cluster.wait_end(job, TIMEOUT_S) == "COMPLETED", run.logs()
    (requeue,) = run.events("requeue")
    (resume,) = run.events("resume")
    assert 10 <= resume["step"] == requeue["step"] < STEPS
    assert steps(run) == list(range(1, STEPS + 1))
    assert result(run.folder) == result(straight)


def test_torchrun_job_warned_under_sbatch_and_preempted_under_submitit_ends_bitwise_the_same(
    straight: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run.sbatch(env={"FITB_LAUNCHER": "torchrun"})
    wait_for_step(run, 5)
    for host in run.cluster.hosts:
        assert len(run.cluster.processes(host, "-m", "fitb.training.torchrun")) == 1
        assert len(run.cluster.processes(host, *TORCHRUN_RANK)) == 1
    with standing_still(run, TORCHRUN_RANK):
        run.cluster("scancel", "--batch", "--signal=USR1", job)
    run.cluster.wait_restart(job)
    wait_for_step(run, run.saved() + 5)
    (requeue,) = run.events("requeue")
    assert requeue["exit_code"] == 85 and 5 <= requeue["step"] < STEPS
    with standing_still(run, TORCHRUN_RANK):
        run.cluster("scancel", job)
    run.cluster.wait_state(job, "CANCELLED")
    second = run.submitit(monkeypatch, "--time_min", "30", torchrun=True).job_id
    wait_for_step(run, run.saved() + 5)
    with standing_still(run, TORCHRUN_RANK):
        run.cluster.preempt()
    run.cluster.wait_restart(second)
    assert run.cluster.wait_end(second, TIMEOUT_S) == "COMPLETED", run.logs()
    assert len(run.events("attempt")) == 4
    stops = [event["step"] for event in run.events("stop")]
    assert [event["step"] for event in run.events("resume")] == stops[:3]
    assert steps(run) == list(range(1, STEPS + 1))
    assert result(run.folder) == result(straight)
