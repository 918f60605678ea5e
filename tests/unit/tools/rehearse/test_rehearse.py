"""The whole rehearsal with processes of this machine that leave the files of a training job."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from fitb.base.errors import SystemFault
from fitb.base.fsio import read_lines
from fitb.cli import main
from fitb.rundir.status import status
from fitb.tools.rehearse.jobs import LocalJob
from fitb.tools.rehearse.rehearsal import perform

# It ends like `fitb train`, or as its first word says.
JOB = """
import datetime, os, signal, sys, time
from pathlib import Path
from fitb.base.fsio import append_line, read_lines
words = sys.argv[::-1]
how, run = sys.argv[1], Path(words[words.index("--run_dir") - 1])  # the last one counts
got = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(number))
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
(run / f"pid-{os.getpid()}").touch()
def living():
    return [p for p in run.glob("pid-*") if Path("/proc", p.name.removeprefix("pid-")).exists()]
while len(living()) < int(os.environ["WORLD_SIZE"]):  # as training: no step without every rank
    time.sleep(0.01)
main, log = os.environ["RANK"] == "0", run / "events.jsonl"
saves = [e["step"] for e in read_lines(log) if e["event"] == "save"] if main else []
attempt = 1 + len([e for e in read_lines(log) if e["event"] == "attempt"])
step = saves[-1] - (2 if how == "forgetful" else 0) if saves else 0
def event(name, **more):
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    if main:
        append_line(log, {"time": now, "event": name, "attempt": attempt, **more})
event("attempt", world_size=int(os.environ["WORLD_SIZE"]), hosts=["here"])
if saves:
    event("resume", step=step)
while not got:
    time.sleep(0.01)
    step += 1
    if main:
        append_line(run / "metrics.jsonl", {"train/step": step, "perf/steps_per_s": 100.0})
    if how == "short" and step == 3:
        sys.exit(0)
if how == "crashing":
    sys.exit(1)
time.sleep(0.2)
if main:
    (run / "checkpoints" / f"step-{step:07d}").mkdir()
event("save", step=step)
event("stop", step=step, exit_code=85, reason=signal.Signals(got[0]).name)
sys.exit(85)
"""


def shutdowns(how, run_dir, minutes=1, script=JOB):
    command = [sys.executable, "-c", script, how, "--run_dir", str(run_dir)]
    return perform(LocalJob(command, 2, run_dir), run_dir, minutes)


def survivors(run_dir):
    """Processes of the job that still run."""
    pids = [path.name.removeprefix("pid-") for path in run_dir.glob("pid-*")]
    assert pids
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_job_leaves_on_each_signal_comes_back_and_is_ended(tmp_path):
    ends = shutdowns("well", tmp_path)
    assert [e.end for e in ends] == ["time limit", "preemption"]
    stops = [e for e in read_lines(tmp_path / "events.jsonl") if e["event"] == "stop"]
    assert [e["reason"] for e in stops] == [e.signal for e in ends] == ["SIGUSR1", "SIGTERM"]
    assert [e["step"] for e in stops] == [e.step for e in ends]
    assert ends[1].step >= ends[0].step + 5
    for end in ends:
        assert 0.2 <= end.saved_s <= end.left_s < 30
        assert end.steps_lost == 0
    assert survivors(tmp_path) == []
    assert [a.last_step for a in status(tmp_path).attempts[:2]] == [e.step for e in ends]


def test_steps_that_are_done_again_are_counted(tmp_path):
    assert [e.steps_lost for e in shutdowns("forgetful", tmp_path)] == [2, 2]


@pytest.mark.parametrize(
    ("how", "said"),
    [("crashing", "ended with 1 .* expected 85"), ("short", "ended with 0 .* --steps")],
)
def test_job_that_ends_otherwise_is_an_error_that_says_where_to_look(tmp_path, how, said):
    with pytest.raises(SystemFault, match=said):
        shutdowns(how, tmp_path)
    assert survivors(tmp_path) == []


def test_minutes_that_are_over_end_the_job(tmp_path):
    with pytest.raises(SystemFault, match="5 steps: --minutes 0.02 are over"):
        shutdowns("well", tmp_path, 0.02, JOB.replace("step += 1", ""))
    assert survivors(tmp_path) == []


def test_command_rehearses_here_where_it_is_told_to_and_prints_its_verdict(
    tmp_path, monkeypatch, capsys
):
    for how, code in (("well", 0), ("forgetful", 1)):
        monkeypatch.setattr(
            "fitb.tools.rehearse.rehearsal.train_command",
            lambda flags, how=how: [sys.executable, "-c", JOB, how, *flags],
        )
        words = ["--cluster=local", "--minutes=1", f"--run_dir={tmp_path}/{how}"]
        assert main(["rehearse", "--json", *words, "--global_batch", "64"]) == code
        found = json.loads(capsys.readouterr().out)
        assert found["run_dir"] == f"{tmp_path}/{how}-rehearsal"
        assert len(found["reasons"]) == 2 * code
        assert [lead["given_s"] for lead in found["leads"]] == [300.0, 30.0]
        assert os.listdir(tmp_path / f"{how}-rehearsal" / "logs") == ["rehearsal.out"]
    assert not (tmp_path / "well").exists()
