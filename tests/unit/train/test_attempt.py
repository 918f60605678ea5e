"""One attempt at a time owns a run; what a replaced one still does changes nothing."""

import itertools
import json
import os
import subprocess
import sys
import time

import pytest
from test_checkpoint import tensors

from fitb import fsio
from fitb.errors import FitbError
from fitb.train import attempt
from fitb.train.attempt import Replaced, RunTaken, leave, take
from fitb.train.checkpoint import load, save
from fitb.train.rundir import RunDir
from fitb.world import World

ALONE = World()
JOB = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}


def owned(run):
    return sorted(path.name for path in (run / "attempts").iterdir())


def belongs_to(run, number, **changed):
    """Change what the folder of an attempt says about its owner."""
    path = run / "attempts" / f"{number:04d}" / "owner.json"
    fsio.write_json(path, fsio.read_json(path) | changed)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def fast(monkeypatch):
    """Dead after half a second of silence."""
    monkeypatch.setattr(attempt, "SILENT_S", 0.5)
    monkeypatch.setattr(attempt, "_POLL_S", 0.02)


@pytest.fixture
def stranger():
    """A process of this machine that lives until the end of the test."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def test_attempts_are_numbered_in_turn_and_end(run):
    for number in (1, 2, 3):
        assert take(run, {}) == number
        leave(run, number)
    assert owned(run) == ["0001.ended", "0002.ended", "0003.ended"]
    assert list((run / "checkpoints").iterdir()) == []


def test_a_run_of_an_older_fitb_goes_on_with_its_numbers(run):
    assert take(run, {}, first=5) == 5


def test_a_second_job_on_a_run_that_lives_is_refused_and_changes_nothing(run, stranger):
    take(run, JOB)
    started = attempt._started(stranger.pid)
    belongs_to(run, 1, pid=stranger.pid, started=started)
    with pytest.raises(RunTaken, match=f"attempt 1, which lives: process {stranger.pid} .* job 7"):
        take(run, JOB | {"SLURM_JOB_ID": "8"})
    with pytest.raises(RunTaken, match="One job at a time"):
        take(run, JOB)
    assert owned(run) == ["0001"]
    assert (run / "checkpoints" / ".0001").is_dir()


def test_a_dead_process_of_this_machine_is_replaced_at_once(run, stranger):
    take(run, {})
    belongs_to(run, 1, pid=stranger.pid, started=1.0)  # a number that was given out again
    began = time.monotonic()
    assert take(run, {}) == 2
    assert time.monotonic() - began < 1
    assert owned(run) == ["0001.ended", "0002"]


def test_what_slurm_has_requeued_is_replaced_at_once_though_it_lives(run, stranger):
    take(run, JOB)
    started = attempt._started(stranger.pid)
    belongs_to(run, 1, pid=stranger.pid, started=started)
    assert take(run, JOB | {"SLURM_RESTART_COUNT": "1"}) == 2


def test_an_attempt_elsewhere_that_is_silent_is_replaced_and_one_that_beats_is_not(run, fast):
    take(run, {})
    belongs_to(run, 1, host="elsewhere")
    beating = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from fitb.train.attempt import beat\n"
            "for step in range(100): beat(Path(sys.argv[1]), 3, step); time.sleep(0.05)",
            str(run / "attempts" / "0001"),
        ]
    )
    sign = run / "attempts" / "0001" / "rank-00003.json"
    while not sign.exists():
        time.sleep(0.01)
    with pytest.raises(RunTaken, match=r"job none on elsewhere gave a sign of life"):
        take(run, {})
    beating.kill()
    beating.wait()
    assert take(run, {}) == 2
    assert json.loads((run / "attempts" / "0001.ended" / sign.name).read_text())["step"] >= 0


def test_of_two_that_take_over_at_the_same_moment_one_does(run, fast):
    code = (
        "import sys; from pathlib import Path; from fitb.train import attempt\n"
        "attempt.SILENT_S = 0.5\n"
        "try: print(attempt.take(Path(sys.argv[1]), {}))\n"
        "except attempt.RunTaken: print('refused')\n"
        "sys.stdin.read()"
    )
    take(run, {})
    belongs_to(run, 1, host="elsewhere")
    command = [sys.executable, "-c", code, str(run)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(4)]
    said = [process.stdout.readline().strip() for process in both]
    for process in both:
        process.communicate()
    assert sorted(said) == ["2", "refused", "refused", "refused"]


def committing(run, number, step):
    root = run / "checkpoints"
    licence = RunDir(run, number, ALONE).licence
    return save(root, tensors(step), {"step": step}, licence=licence, world=ALONE, keep_last=2)


def contents(folder):
    """Every file, owners and heartbeats apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and "attempts" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_replaced_attempt_can_neither_commit_nor_prune_nor_tell(run):
    take(run, JOB)
    for step in (1, 2):
        committing(run, 1, step)
    old = RunDir(run, 1, ALONE)
    take(run, JOB | {"SLURM_RESTART_COUNT": "1"})
    committing(run, 2, 3)
    before = contents(run)
    with pytest.raises(Replaced, match="another attempt has taken this run over"):
        committing(run, 1, 4)
    with pytest.raises(Replaced, match="attempt 1 of .* has been replaced"):
        old.check_owned()
    old.event("save", step=4)
    old.leave(0)
    assert contents(run) == before
    assert owned(run) == ["0001.ended", "0002"]


ACTIONS = ("os.fsync", "os.replace", "os.rename", "os.open", "pathlib.Path.mkdir", "os.scandir")


@pytest.mark.parametrize("action", ACTIONS)
def test_a_take_over_in_the_middle_of_a_commit_leaves_the_newer_attempt_alone(
    tmp_path, monkeypatch, action
):
    """Before each action of a kind in turn; the older one may commit before it, never after."""
    module, name = action.rsplit(".", 1)
    owner = {"os": os, "pathlib.Path": attempt.Path}[module]
    real = getattr(owner, name)
    for moment in itertools.count(1):
        run = tmp_path / f"run-{moment}"
        run.mkdir()
        take(run, JOB)
        committing(run, 1, 1)
        left = moment

        def acting(*args, run=run, **kwargs):
            nonlocal left, before
            left -= 1
            if left == 0:
                monkeypatch.undo()
                take(run, JOB | {"SLURM_RESTART_COUNT": "1"})
                before = contents(run)
            return real(*args, **kwargs)

        before = None
        monkeypatch.setattr(owner, name, acting)
        try:
            committing(run, 1, 2)
            committing(run, 1, 3)
        except (FitbError, OSError) as error:
            assert isinstance(error, Replaced), error
        if before is None:  # there are fewer actions than that
            break
        assert contents(run) == before
        assert load(run / "checkpoints", ALONE) is not None
    assert moment > 2
