"""The real training job on a real Slurm of two hosts: interrupted, it ends where it would have."""

from __future__ import annotations

import math
import os
import signal

import pytest
from machine import wait_until
from real import (
    RANK,
    SUBMITIT_RANK,
    TIMEOUT_S,
    assert_ended_as,
    ranks,
    standing_still,
    wait_for_step,
)

from fitb.rundir.ledger import ledger

pytestmark = pytest.mark.cluster


def test_sbatch_job_preempted_and_then_at_its_time_limit_ends_bitwise_as_if_uninterrupted(
    straight, real_run
):
    run, cluster = real_run, real_run.cluster
    job = run.sbatch("--time=30", "--signal=B:USR1@110")
    wait_for_step(run, job, 5)
    with standing_still(run):
        cluster.preempt()
    cluster.wait_restart(job)
    wait_for_step(run, job, run.saved() + 5)
    # Slurm looks at limits, whole minutes, every 30 s.
    with standing_still(run):
        minutes = math.ceil((cluster.run_time_s(job) + 45) / 60)
        cluster("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    cluster.wait_restart(job, 2, TIMEOUT_S)
    cluster("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    assert cluster.wait_end(job, TIMEOUT_S) == "COMPLETED", run.logs()
    assert cluster.show(job)["Restarts"] == "2"
    assert "stop signal received" in run.batch_log.read_text()
    requeues = run.events("requeue")
    assert [event["exit_code"] for event in requeues] == [85, 85]
    assert [e["step"] for e in run.events("resume")] == [e["step"] for e in requeues]
    assert 5 <= requeues[0]["step"] < requeues[1]["step"] < run.payload.steps
    assert len(run.events("attempt")[1]["hosts"]) == 2
    assert_ended_as(run, straight)


def test_run_killed_under_sbatch_and_preempted_and_killed_under_submitit_ends_bitwise_the_same(
    straight, real_run, monkeypatch
):
    run, cluster = real_run, real_run.cluster
    job = run.sbatch()
    wait_until(lambda: run.saved() > 0, TIMEOUT_S, "a save")
    hanging, killed = ranks(run, RANK)
    os.kill(hanging, signal.SIGSTOP)  # Slurm ends it after 10 s
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: run.events("restart"), 60, "another start of the tasks")
    wait_for_step(run, job, run.saved() + 5)
    assert (cluster.state(job), cluster.show(job)["Restarts"]) == ("RUNNING", "0")
    with standing_still(run):
        cluster("scancel", job)
    cluster.wait_state(job, "CANCELLED")
    assert run.events("requeue") == []
    second = run.submitit(monkeypatch, "--time_min", "30")[0].job_id
    wait_for_step(run, second, run.saved() + 5)
    with standing_still(run, SUBMITIT_RANK):
        cluster.preempt()
    cluster.wait_restart(second)
    left = run.saved()
    wait_for_step(run, second, left + 15)
    wait_until(lambda: run.saved() > left, TIMEOUT_S, "another save")
    first, last = ranks(run, SUBMITIT_RANK)
    os.kill(first, signal.SIGSTOP)
    os.kill(last, signal.SIGKILL)
    os.kill(first, signal.SIGCONT)
    assert cluster.wait_end(second, TIMEOUT_S) == "COMPLETED", run.logs()
    assert cluster.show(second)["Restarts"] == "1"
    hung, cancelled, preempted, died = (event["step"] for event in run.events("resume"))
    assert [event["step"] for event in run.events("restart")] == [hung, died]
    assert [event["step"] for event in run.events("requeue")] == [preempted]
    assert [event["step"] for event in run.events("stop")][:2] == [cancelled, preempted]
    assert 0 < hung < cancelled < preempted == left < died < run.payload.steps
    starts = [(e["job"], e["restart"], e["start"]) for e in run.events("attempt")]
    assert starts == [(job, 0, 0), (job, 0, 1), (second, 0, 0), (second, 1, 0), (second, 1, 1)]
    found = ledger(run.folder)
    assert found is not None and found.seconds["training"] > 0
    assert abs(found.unaccounted_s) < 0.01 * found.wall_s
    assert_ended_as(run, straight)
