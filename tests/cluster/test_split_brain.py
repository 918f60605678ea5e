"""A host that is cut off works on, while Slurm starts its job elsewhere: it can harm nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import ROOT
from machine import run, wait_until
from real import RANK, assert_ended_as, wait_for_step

from fitb.base.fsio import read_lines

pytestmark = pytest.mark.cluster

# Behind its first saves the attempt that will be cut off works slowly, or it would be done before
# another one begins.
SLOW = """
import os, sys
if "train" in sys.orig_argv and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    import time
    from fitb.training.engine import Engine
    train_step = Engine.train_step
    def slow(self, step, *args):
        time.sleep(2 * (step >= 10))
        return train_step(self, step, *args)
    Engine.train_step = slow
"""


def test_an_attempt_on_a_host_that_was_cut_off_cannot_write_into_the_run_it_has_lost(
    cluster, straight, real_run, tmp_path
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW)
    env = real_run.payload.env | {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    job = replace(real_run, payload=replace(real_run.payload, env=env, tasks_per_node=2))
    number = job.sbatch("--nodes=1", flags=["--checkpoint.every_steps", "2"])
    wait_for_step(job, number, 10)
    (cut,) = set(job.events("attempt")[0]["hosts"])
    run("ip", "-n", cut, "link", "set", "eth0", "down")
    try:
        cluster.wait_restart(number)
        assert cluster.processes(cut, *RANK), "the old attempt lives on"
        saved = job.saved()
        cluster.hurry(number)
        wait_until(lambda: len(job.events("attempt")) == 2, 180, "the next attempt")
        wait_until(lambda: not cluster.processes(cut, *RANK), 60, "the end of the old attempt")
        assert cluster.wait_end(number) == "COMPLETED", job.logs()
    finally:
        run("ip", "-n", cut, "link", "set", "eth0", "up")
    first, second = job.events("attempt")
    assert set(second["hosts"]).isdisjoint(first["hosts"])
    assert (second["job"], second["restart"]) == (first["job"], 1)
    assert job.events("resume")[0]["step"] >= saved > 0
    assert "has been replaced by a later one" in job.logs()
    events = list(read_lines(job.folder / "events.jsonl"))
    assert {e["attempt"] for e in events[events.index(second) :] if "attempt" in e} == {2}
    assert_ended_as(job, straight)
    wait_until(lambda: cluster("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "low") == "2", 60, "")
