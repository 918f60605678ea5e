"""slurm/distill.sh and the submitit door on a real Slurm of two hosts."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import DISTILL, ROOT
from executable import executable
from machine import start_munge, wait_until

from fitb.cluster.submit import wait_for

pytestmark = pytest.mark.cluster


def test_batch_script_as_it_is_runs_on_two_hosts_to_its_end_in_a_folder_of_any_name(run):
    run.folder = run.folder.with_name("drop=50%j warm é\\%t [a]*")
    log = run.folder.parent / "batch.out"
    job = run.cluster.sbatch(f"--output={log}", DISTILL, *run.flags, env=run.env(), cwd=ROOT)
    assert run.cluster.wait_end(job) == "COMPLETED", log.read_text()
    assert run.saved() == run.payload.steps
    (attempt,) = run.events("attempt")
    assert attempt["world_size"] == 8
    logs = {path.name for path in (run.folder / "logs").iterdir()}
    assert logs == {f"{job}.{task}.out" for task in range(8)}


def test_submitit_job_resumes_after_its_time_limit(run, monkeypatch):
    monkeypatch.setenv("STAND_IN_STEP_S", "1.0")
    (job,) = run.submitit(monkeypatch, "--time_min", "1", "--signal_delay_s", "10")
    run.cluster.wait_restart(job.job_id, timeout_s=120)
    assert run.events("requeue")[0]["step"] > 0, run.logs()
    assert run.cluster.wait_end(job.job_id) == "COMPLETED", run.logs()
    assert run.saved() == run.payload.steps and wait_for(job, run.folder) == 0


def test_cancelled_job_saves_and_is_not_requeued(run):
    job = run.sbatch()
    wait_until(lambda: run.saved() >= 10, 90, "a first checkpoint")
    run.cluster("scancel", job)
    run.cluster.wait_state(job, "CANCELLED")
    assert run.events("stop")[0]["step"] == run.saved() >= 10
    assert run.events("requeue") == []
    assert run.cluster.show(job)["Restarts"] == "0"


@pytest.mark.parametrize(
    ("env", "flags", "decided", "saved", "said"),
    [
        (
            {"STAND_IN_CRASH_AT": "15"},
            [],
            {"restart": [0, 1], "requeue": [2], "stop": [3]},
            10,
            "3 of 3 attempts",
        ),
        ({"STAND_IN_STOP_AT": "3"}, [], {"stop": [0]}, 0, "93"),
        ({}, ["--stepz", "3"], {}, 0, "'stepz' (nearest: steps)"),
    ],
)
def test_crash_starts_the_tasks_again_and_is_requeued_and_a_stop_and_a_typing_error_are_not(
    run, env, flags, decided, saved, said
):
    job = run.sbatch(env=env, flags=flags)
    assert run.cluster.wait_end(job) == "FAILED"
    assert run.cluster.show(job)["ExitCode"] == "93:0", run.logs()
    assert run.cluster.show(job)["Restarts"] == str(len(decided.get("requeue", [])))
    ends = {name: run.events(name) for name in ("restart", "requeue", "stop")}
    stalled = {n: [e["stalled"] for e in found if "stalled" in e] for n, found in ends.items()}
    assert {name: found for name, found in stalled.items() if found} == decided
    assert len(run.events("attempt")) == sum(map(len, decided.values()))
    assert run.folder.exists() == bool(decided) and run.saved() == saved
    assert said in run.batch_log.read_text()


def test_submitit_job_that_crashes_again_and_again_fails_visibly(run, monkeypatch):
    monkeypatch.setenv("STAND_IN_CRASH_AT", "3")
    (job,) = run.submitit(monkeypatch, "--time_min", "30")
    assert run.cluster.wait_end(job.job_id) == "FAILED", run.logs()
    assert [len(run.events(name)) for name in ("attempt", "restart", "requeue")] == [3, 1, 1]
    assert wait_for(job, run.folder) == 93


def test_flag_with_a_typing_error_costs_no_task(run):
    job = run.sbatch(flags=["--stepz", "3"])
    assert run.cluster.wait_end(job) == "FAILED"
    assert run.cluster.show(job)["ExitCode"] == "93:0"
    assert "'stepz' (nearest: steps)" in run.batch_log.read_text()
    assert not run.folder.exists()


def test_chain_goes_on_where_a_preempted_link_left_and_ends_with_the_run(run):
    link = ("--no-requeue", "--dependency=singleton")
    first, second, third = (run.sbatch(*link, env={"FITB_CHAIN": "mine"}) for _ in range(3))
    wait_until(lambda: run.saved() >= 10, 90, "a first checkpoint")
    run.cluster.preempt()
    assert run.cluster.wait_end(third) == "COMPLETED", run.logs()
    assert run.cluster.state(second) == "COMPLETED"
    assert [event["world_size"] for event in run.events("attempt")] == [4, 4]
    (left,) = run.events("requeue")
    assert (left["job"], left["chain"], left["exit_code"]) == (first, "mine", 85)
    assert run.events("attempt")[1]["step"] == left["step"] >= 10
    done = json.loads((run.folder / "done.json").read_text())
    assert (done["exit_code"], done["job"], done["chain"]) == (0, second, "mine")
    assert run.batch_log.read_text().count("nothing is left to do") == 1


def test_logs_that_one_host_cannot_write_are_a_crash_with_its_name_and_the_chain_goes_on(run):
    logs, host = run.folder / "logs", run.cluster.hosts[1]
    logs.mkdir(parents=True)
    run.cluster.on(host, "mount", "--bind", str(logs), str(logs))
    run.cluster.on(host, "mount", "-o", "remount,bind,ro", str(logs))
    link = ("--no-requeue", "--dependency=singleton")
    try:
        job = run.sbatch(*link, env={"FITB_CHAIN": "mine"})
        assert run.cluster.wait_end(job, 50) == "FAILED"
    finally:
        run.cluster.on(host, "umount", str(logs))
    assert run.cluster.show(job)["ExitCode"] == "85:0", run.logs()
    assert f"fitb: {host} cannot write {logs}/{job}." in run.batch_log.read_text()
    assert [event["stalled"] for event in run.events("requeue")] == [1]
    assert run.events("attempt") == [] and not (run.folder / "done.json").exists()
    job = run.sbatch(*link, env={"FITB_CHAIN": "mine"})
    assert run.cluster.wait_end(job) == "COMPLETED", run.logs()
    assert run.saved() == run.payload.steps


def test_clusters_that_start_at_once_start_one_munged(slurm, tmp_path, monkeypatch):
    started = tmp_path / "started"
    scripts = {
        "munge": f'[[ -e "{started}.ready" ]]',
        "runuser": f'set -C; : > "{started}" && sleep 0.2 && : > "{started}.ready"',
    }
    for name, line in scripts.items():
        executable(tmp_path / name, line)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with ThreadPoolExecutor() as threads:
        for _ in threads.map(lambda _: start_munge(), range(4)):
            pass
    assert Path(f"{started}.ready").exists()
