"""`fitb rehearse` on a real Slurm; what a signal does to several tasks is tested elsewhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, stand_in
from machine import wait_until

from fitb.base.fsio import read_lines
from fitb.rundir.status import status

pytestmark = pytest.mark.cluster

WHERE = "--nodes=1 --ntasks-per-node=1 --gpus-per-node=0 --cpus-per-task=1"


def start(cluster, *words, env):
    return subprocess.Popen(
        [sys.executable, "-m", "fitb", "rehearse", "--json", "--sbatch", WHERE, *words],
        cwd=ROOT,
        env=cluster.env | {"PYTHONPATH": str(ROOT), "FITB_PYTHON": sys.executable} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_real_job_is_stopped_as_by_a_time_limit_and_a_preemption_and_judged(
    cluster, tmp_path, quick_flags, monkeypatch
):
    flags = [*quick_flags, "--steps", "5000", "--eval.every_steps", "0"]
    run_dir = tmp_path / "run-rehearsal"
    words = ("--", *flags, "--run_dir", str(tmp_path / "run"))
    with start(cluster, *words, env={"OMP_NUM_THREADS": "1"}) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["reasons"] == []
    assert [(e["end"], e["signal"], e["steps_lost"]) for e in found["leaves"]] == [
        ("time limit", "SIGUSR1", 0),
        ("preemption", "SIGTERM", 0),
    ]
    events = list(read_lines(run_dir / "events.jsonl"))
    stops = [e for e in events if e["event"] == "stop"]
    assert [e["reason"] for e in stops][:2] == ["SIGUSR1", "SIGTERM"]
    assert [e["step"] for e in stops][:2] == [leave["step"] for leave in found["leaves"]]
    assert [e["step"] for e in events if e["event"] == "resume"] == [e["step"] for e in stops][:2]
    for leave in found["leaves"]:
        assert 0 < leave["saved_s"] <= leave["left_s"] < 60
        assert leave["start_s"] > 0
    given = {lead["name"]: lead["given_s"] for lead in found["leads"]}
    assert given == {"--signal": 300, "GraceTime": cluster.grace_s}
    site = {finding["name"]: finding["value"] for finding in found["site"]}
    assert (site["Requeue"], site["PreemptMode"]) == ("1", "REQUEUE")
    job = found["job"].removeprefix("job ")
    assert cluster.show(job)["JobState"] == "CANCELLED"
    assert cluster.show(job)["Restarts"] == "2"
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    told = status(run_dir, now_s=time.time() + 300)
    assert (told.state, told.step, told.steps) == ("stopped", stops[2]["step"], 5000)
    assert [a.job for a in told.attempts[:2]] == [job, job]
    assert [a.last_step for a in told.attempts] == [e["step"] for e in stops]
    assert told.steps_per_s and told.save and told.save.step == told.step


def start_stand_in(cluster, folder, *words):
    payload = stand_in(folder, steps=5000)
    flags = (*words, "--", *payload.flags, "--run_dir", str(folder / "run"))
    return start(cluster, *flags, env=payload.env | {"FITB_PYTHON": payload.python})


def test_job_that_may_not_be_requeued_is_said_to_be_so_at_once_and_cancelled(cluster, tmp_path):
    with start_stand_in(cluster, tmp_path, "--sbatch=--no-requeue") as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    assert "Requeue=0: `scontrol requeue` is refused for this job" in err
    assert not cluster("squeue", "-h")


def test_interrupted_rehearsal_cancels_its_job(cluster, tmp_path):
    with start_stand_in(cluster, tmp_path) as process:
        wait_until((tmp_path / "run-rehearsal" / "events.jsonl").exists, 60, "an attempt")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert not cluster("squeue", "-h")
    assert "is cancelled" in err
