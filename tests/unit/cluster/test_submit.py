"""The submitit door on this machine: real processes, real signals, no Slurm."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from executable import ran

from fitb.base.errors import CRASH, ConfigError, SystemFault
from fitb.cluster.arrays import CommandJob
from fitb.cluster.executor import resource_parser
from fitb.cluster.submit import DistillJob, submit_distill, wait_for

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 90
FLAGS = ["--steps", "20", "--checkpoint.every_steps", "10"]


@pytest.fixture
def stand_in(monkeypatch):
    """Let jobs import the stand-in of the cluster tests."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests' / 'cluster'}")
    monkeypatch.setenv("STAND_IN_STEP_S", "0.02")
    return monkeypatch


def submit(run_dir, *where):
    arguments = resource_parser("test").parse_args(["--cluster", "local", *where])
    flags = ["--run_dir", str(run_dir), *FLAGS]
    return submit_distill(flags, arguments, entry="stand_in:train")[0][0]


def events(run_dir, name):
    path = run_dir / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def log(job):
    return job.paths.stderr.read_text() if job.paths.stderr.exists() else "no log"


def test_sigterm_saves_requeues_and_resumes_under_the_same_id(stand_in, tmp_path):
    stand_in.setenv("STAND_IN_STEP_S", "0.3")
    run_dir = tmp_path / "run"
    job = submit(run_dir, "--tasks_per_node", "2")
    deadline = time.monotonic() + TIMEOUT_S
    while not events(run_dir, "attempt"):
        assert time.monotonic() < deadline, log(job)
        time.sleep(0.05)
    os.kill(int(job.job_id), signal.SIGTERM)  # the controller passes it on to its tasks
    assert wait_for(job, run_dir) == 0, log(job)
    (requeue,) = events(run_dir, "requeue")
    assert (requeue["job"], requeue["exit_code"]) == (job.job_id, 85)
    attempts = [(event["step"], event["world_size"]) for event in events(run_dir, "attempt")]
    assert attempts == [(0, 2), (requeue["step"], 2)]
    assert job.paths.folder == run_dir / "logs"


def test_time_limit_saves_requeues_and_resumes(stand_in, tmp_path):
    stand_in.setenv("STAND_IN_STEP_S", "1")
    run_dir = tmp_path / "run"
    job = submit(run_dir, "--time_min", "0.5", "--signal_delay_s", "26")
    assert wait_for(job, run_dir) == 0, log(job)
    assert len(events(run_dir, "requeue")) >= 1
    assert events(run_dir, "attempt")[1]["step"] == events(run_dir, "requeue")[0]["step"] > 0


@pytest.mark.parametrize(
    ("fault", "value", "stalled", "said"),
    [
        ("STAND_IN_STOP_AT", "3", [], "would not help"),
        ("STAND_IN_STEP_S", "not a number", [1, 2], "could not convert string to float"),
    ],
)
def test_job_that_stops_or_crashes_three_times_fails_visibly_with_the_reason(
    stand_in, tmp_path, fault, value, stalled, said
):
    stand_in.setenv(fault, value)
    run_dir = tmp_path / "run"
    job = submit(run_dir, "--tasks_per_node", "2")
    assert wait_for(job, run_dir) == 93
    assert [event["stalled"] for event in events(run_dir, "requeue")] == stalled
    assert said in log(job)


def unresolved(run_dir, job, chain):
    """A job of nine steps that ended without a result."""
    task = DistillJob(("--run_dir", str(run_dir), "--steps", "9"), chain=chain)
    return SimpleNamespace(
        job_id=job,
        num_tasks=1,
        done=lambda: True,
        paths=SimpleNamespace(result_pickle=run_dir / "none"),
        submission=lambda: SimpleNamespace(function=task),
    )


@pytest.mark.parametrize(
    ("done", "code"),
    [
        ({}, CRASH),
        ({"job": "5", "step": 5}, CRASH),  # an earlier job, which was to do less
        ({"job": "5", "step": 9}, 0),
        ({"job": "9", "step": 5}, CRASH),  # no attempt says so
        ({"job": "5", "step": 5, "chain": "mine", "exit_code": 93}, 93),
    ],
)
def test_job_without_a_result_is_finished_only_if_its_run_is(tmp_path, done, code):
    if done:
        record = {"exit_code": 0, "reason": "finished", "chain": ""} | done
        (tmp_path / "done.json").write_text(json.dumps(record))
    assert wait_for(unresolved(tmp_path, "9", done.get("chain", "")), tmp_path) == code


def test_link_without_a_result_left_although_a_later_one_finished(tmp_path):
    lines = [
        {"event": "requeue", "job": "9", "chain": "mine"},
        {"event": "attempt"},
        {"event": "stop", "exit_code": 0},
    ]
    (tmp_path / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    done = {"exit_code": 0, "reason": "finished", "chain": "mine", "job": "10", "step": 20}
    (tmp_path / "done.json").write_text(json.dumps(done))
    codes = [wait_for(unresolved(tmp_path, job, "mine"), tmp_path) for job in ("9", "11")]
    assert codes == [85, 0]


@pytest.mark.parametrize(
    ("where", "flags", "said"),
    [(["--nodes", "300"], [], "300 processes"), ([], ["--stepz", "1"], "nearest: steps")],
)
def test_configuration_is_checked_before_anything_is_submitted(tmp_path, where, flags, said):
    with pytest.raises(ConfigError, match=said):
        submit_distill(
            ["--run_dir", str(tmp_path / "run"), *flags], resource_parser("test").parse_args(where)
        )
    assert not (tmp_path / "run").exists()


def test_cluster_that_cannot_hold_the_job_is_a_system_fault(tmp_path, monkeypatch):
    parser = resource_parser("test")
    flags = ["--run_dir", str(tmp_path / "run")]
    with pytest.raises(SystemFault, match="only one node"):
        submit_distill(flags, parser.parse_args(["--cluster", "local", "--nodes", "2"]))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemFault, match="srun"):
        submit_distill(flags, parser.parse_args(["--cluster", "slurm"]))


def test_command_job_fails_with_the_command(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert CommandJob(("--version",))() == 0
    with pytest.raises(Exception, match="`fitb train` ended with 93"):
        CommandJob(("train", "--stepz", "1"))()


def test_launcher_submits_waits_and_returns_the_code_of_the_job(tmp_path):
    train = "def train(config, on_end):\n    return 93 if config.seed else stand_in.train(config)\n"
    package = tmp_path / "shadow" / "fitb_entry.py"
    package.parent.mkdir()
    package.write_text(f"import stand_in\n{train}")
    start = (
        "import sys, fitb.cluster.submit as s\n"
        "s.submit_distill.__kwdefaults__['entry'] = 'fitb_entry:train'\n"
        "from fitb.cli import main; sys.exit(main(['launch.distill', *sys.argv[1:]]))"
    )
    where = ["--cluster", "local", "--wait", "--run_dir", str(tmp_path / "run")]
    path = f"{ROOT}:{package.parent}:{ROOT / 'tests' / 'cluster'}"
    env = os.environ | {"PYTHONPATH": path, "STAND_IN_STEP_S": "0.01"}

    command = [sys.executable, "-c", start, *where]
    done = ran(*command, "--", "--steps", "5", env=env, cwd=ROOT)
    assert done.stdout.startswith("job ") and "log of rank 0: " in done.stdout
    ran(*command, "--seed", "1", env=env, cwd=ROOT, code=93)
