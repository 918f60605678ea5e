"""The real training under torchrun on a real Slurm: warned, cancelled and preempted."""

from __future__ import annotations

import pytest
from real import TIMEOUT_S, TORCHRUN_RANK, assert_ended_as, standing_still, wait_for_step

pytestmark = pytest.mark.cluster


def test_torchrun_job_warned_under_sbatch_and_preempted_under_submitit_ends_bitwise_the_same(
    straight, real_run, monkeypatch
):
    run, cluster = real_run, real_run.cluster
    job = run.sbatch(env={"FITB_LAUNCHER": "torchrun"})
    wait_for_step(run, job, 5)
    for host in cluster.hosts:
        assert len(cluster.processes(host, "-m", "fitb.training.torchrun")) == 1
        assert len(cluster.processes(host, *TORCHRUN_RANK)) == 1
    with standing_still(run, TORCHRUN_RANK):
        cluster("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_restart(job)
    wait_for_step(run, job, run.saved() + 5)
    (requeue,) = run.events("requeue")
    assert requeue["exit_code"] == 85 and 5 <= requeue["step"] < run.payload.steps
    with standing_still(run, TORCHRUN_RANK):
        cluster("scancel", job)
    cluster.wait_state(job, "CANCELLED")
    second = run.submitit(monkeypatch, "--time_min", "30", torchrun=True)[0].job_id
    wait_for_step(run, second, run.saved() + 5)
    with standing_still(run, TORCHRUN_RANK):
        cluster.preempt()
    cluster.wait_restart(second)
    assert cluster.wait_end(second, TIMEOUT_S) == "COMPLETED", run.logs()
    assert len(run.events("attempt")) == 4
    stops = [event["step"] for event in run.events("stop")]
    assert [event["step"] for event in run.events("resume")] == stops[:3]
    assert_ended_as(run, straight)
