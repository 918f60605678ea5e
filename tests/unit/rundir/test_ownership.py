"""One attempt at a time owns a run; what a replaced one still does changes nothing."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from fitb.base import fsio
from fitb.base.errors import ConfigError, FitbError, SystemFault
from fitb.base.world import World
from fitb.rundir import ownership
from fitb.rundir.ownership import Replaced, RunTaken, check_owned, has_ended, release, take
from fitb.rundir.writer import RunDir
from fitb.training.checkpoint import load, save

ALONE = World()
JOB = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}


def tensors(step):
    yield "param/student.weight", torch.full((2, 2), float(step))


def owned(run):
    """Each attempt, and whether it is over."""
    numbers = sorted(int(path.name) for path in (run / "attempts").iterdir())
    return {number: has_ended(run, number) for number in numbers}


def fences(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.name[0] == ".")


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
    monkeypatch.setattr(ownership, "SILENT_S", 0.5)
    monkeypatch.setattr(ownership, "_POLL_S", 0.02)


@pytest.fixture
def stranger():
    """A process of this machine that lives until the end of the test."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def test_attempts_are_numbered_in_turn_and_end(run):
    for number, first in ((5, 5), (6, 1), (7, 1)):  # five: earlier ones left no folders
        assert take(run, {}, first) == number
        release(run, number)
    assert owned(run) == {5: True, 6: True, 7: True}
    assert list((run / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("version", ["this", "earlier"])
def test_a_second_job_on_a_run_that_lives_is_refused_and_changes_nothing(run, stranger, version):
    take(run, JOB)
    belongs_to(run, 1, pid=stranger.pid, started=ownership._started(stranger.pid))
    if version == "earlier":
        path = run / "attempts" / "0001" / "owner.json"
        fsio.write_json(path, {k: v for k, v in fsio.read_json(path).items() if k != "nonce"})
    for env in (JOB | {"SLURM_JOB_ID": "8"}, JOB, {}):
        with pytest.raises(RunTaken, match=f"attempt 1, .* process {stranger.pid} .* job 7"):
            take(run, env)
    assert owned(run) == {1: False}
    assert fences(run) == [".0001"]


@pytest.mark.parametrize("later", [{}, {"SLURM_RESTART_COUNT": "1"}, {"FITB_START": "1"}])
def test_a_dead_process_and_an_earlier_start_of_a_job_are_replaced_without_watching(
    run, stranger, monkeypatch, later
):
    take(run, JOB)
    started = ownership._started(stranger.pid) if later else 1.0  # its number was given again
    belongs_to(run, 1, pid=stranger.pid, started=started)
    monkeypatch.setattr(ownership, "_heartbeats", None)
    assert take(run, JOB | later if later else {}) == 2
    assert owned(run) == {1: True, 2: False}


def test_an_attempt_elsewhere_that_is_silent_is_replaced_and_one_that_beats_is_not(run, fast):
    take(run, {})
    belongs_to(run, 1, host="elsewhere")
    folder, stopped = run / "attempts" / "0001", threading.Event()

    def beat():
        for step in itertools.count():
            ownership.heartbeat(folder, 3, step)
            if stopped.wait(0.05):
                return

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(RunTaken, match="job none on elsewhere wrote a heartbeat"):
            take(run, {})
    finally:
        stopped.set()
        beating.join()
    assert take(run, {}) == 2
    assert json.loads((folder / "rank-00003.json").read_text())["step"] >= 0


def committing(run, number, step):
    root = run / "checkpoints"
    fence = RunDir(run, number, ALONE).fence
    return save(root, dict(tensors(step)), {"step": step}, fence=fence, world=ALONE, keep_last=2)


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
    with pytest.raises(Replaced, match="has been replaced by a later one"):
        committing(run, 1, 4)
    with pytest.raises(Replaced, match="attempt 1 of .* has been replaced"):
        old.check_owned()
    old.event("save", step=4)
    old.close(0)
    assert contents(run) == before
    assert owned(run) == {1: True, 2: False}


ACTIONS = ("fsync", "replace", "rename", "open", "mkdir", "scandir")


@pytest.mark.parametrize("action", ACTIONS)
def test_a_take_over_in_the_middle_of_a_commit_leaves_the_newer_attempt_alone(
    tmp_path, monkeypatch, action
):
    """Before each action of a kind in turn; the older one may commit before it, never after."""
    real = getattr(os, action)
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
        monkeypatch.setattr(os, action, acting)
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


def failing(monkeypatch, name, code, path, then=None):
    """Let a function of `os` fail for one path, once it has acted if `then` is the real one."""
    real = getattr(os, name)

    def call(first, *args, **kwargs):
        if str(first).startswith(str(path)):
            if then:
                then(first, *args)
            raise OSError(code, os.strerror(code), str(first))
        return real(first, *args, **kwargs)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_fence_that_the_filesystem_does_not_show_is_no_proof_of_a_later_attempt(
    run, monkeypatch, code
):
    take(run, JOB)
    owner = RunDir(run, 1, ALONE)
    with monkeypatch.context() as patch:
        failing(patch, "stat", code, owner.fence)
        with pytest.raises(SystemFault) as caught:
            owner.check_owned()
        failing(patch, "mkdir", code, owner.fence)
        with pytest.raises(SystemFault):
            committing(run, 1, 1)
    assert caught.value.restart_helps and str(owner.fence) in str(caught.value)
    owner.check_owned()
    committing(run, 1, 2)
    shutil.rmtree(owner.fence)
    failing(monkeypatch, "listdir", code, run / "attempts")  # nor is a list that cannot be read
    with pytest.raises(SystemFault):
        check_owned(owner.fence)


def test_all_ranks_hear_from_the_first_whether_the_run_is_lost(run, monkeypatch):
    """Another host may remember a fence that is gone, or not see one that is there."""
    take(run, JOB)
    fence = RunDir(run, 1, ALONE).fence
    asked = []

    def on_main(action, world, group):
        asked.append(action)
        raise SystemFault("a disk is full") if len(asked) == 1 else Replaced("said rank 0")

    monkeypatch.setattr("fitb.training.checkpoint.on_main", on_main)
    failing(monkeypatch, "stat", errno.ENOENT, fence)
    with pytest.raises(Replaced, match="said rank 0"):
        save(fence.parent, {}, {"step": 1}, fence=fence, world=World(1, 2), keep_last=2)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("what", ["checkpoints/.claim-", "attempts/0001/token"])
def test_a_rename_that_fails_leaves_a_run_that_can_be_taken_and_one_that_was_made_was_made(
    run, monkeypatch, what, code
):
    """NFS asks again when an answer was lost, and is told that there is nothing to rename."""
    made = code == errno.ENOENT
    with monkeypatch.context() as patch:
        failing(patch, "rename", code, run / what, then=os.rename if made else None)
        if made:
            assert take(run, {}) == 1
        else:
            with pytest.raises(OSError):
                take(run, {})
            assert fences(run) == []
    number = 1 if made else take(run, {})
    assert fences(run) == [f".{number:04d}"]
    committing(run, number, 1)


def test_whoever_is_overtaken_before_its_fence_gets_none_and_the_later_one_owns(run, monkeypatch):
    def overtake(*args):
        monkeypatch.undo()
        assert take(run, {}) == 2

    failing(monkeypatch, "rename", errno.ENOENT, run / "attempts" / "0001" / "token", overtake)
    with pytest.raises(Replaced, match="the newest is 2"):
        take(run, {})
    assert fences(run) == [".0002"]
    assert owned(run) == {1: True, 2: False}


def test_checkpoints_on_another_filesystem_are_refused_and_may_be_if_all_the_run_is(run):
    """The remedy of the error is what the test does."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if os.stat(other).st_dev == run.stat().st_dev:
            pytest.skip("one filesystem")
        (Path(other) / "checkpoints").mkdir()
        (run / "checkpoints").symlink_to(Path(other) / "checkpoints")
        with pytest.raises(ConfigError, match="another filesystem") as caught:
            take(run, {})
        assert "make that a link" in str(caught.value)
        assert os.listdir(Path(other) / "checkpoints") == os.listdir(run / "attempts") == []
        (run / "checkpoints").unlink()
        run.rename(run.with_name("moved"))
        shutil.copytree(run.with_name("moved"), Path(other) / "run")
        run.symlink_to(Path(other) / "run")
        assert take(run, {}) == 1
        committing(run, 1, 1)


@pytest.mark.parametrize("of_old", ["ended", "dead", "made again", "fence only", "late fence"])
def test_what_earlier_versions_left_of_attempts_is_taken_over(run, fast, of_old):
    """They renamed the folder of an attempt that was over, which freed its number."""
    for name in {
        "ended": ["attempts/0004.ended"],
        "dead": ["attempts/0003.ended", "attempts/0004", "checkpoints/.0004/step-1"],
        "made again": ["attempts/0004.ended", "attempts/0004", "checkpoints/.0004"],
        "fence only": ["attempts", "checkpoints/.0004"],
        "late fence": ["attempts/0004.ended", "checkpoints/.0004/step-1", "checkpoints/.0003"],
    }[of_old]:
        (run / name).mkdir(parents=True)
    for folder in (run / "attempts").glob("000*"):
        owner = ownership.Owner.me(int(folder.name[:4]), {})
        plain = {k: v for k, v in vars(owner).items() if k != "nonce"}
        fsio.write_json(folder / "owner.json", plain | {"host": "elsewhere"})
    assert take(run, {}) == 5
    assert fences(run) == [".0005"]
    assert has_ended(run, 4) or of_old == "fence only"
    with pytest.raises(Replaced):
        check_owned(run / "checkpoints" / ".0004")


def test_an_attempt_that_nobody_asked_about_is_not_shut_out(run, monkeypatch):
    """One whose folder a stale list did not show: it goes on, and who came is refused."""
    take(run, JOB)
    real, lists = os.listdir, []

    def stale(path="."):
        lists.append(path)
        return [] if len(lists) <= 2 else real(path)

    monkeypatch.setattr(os, "listdir", stale)
    with pytest.raises(RunTaken):
        take(run, JOB, first=2)
    monkeypatch.undo()
    assert owned(run) == {1: False, 2: True}
    check_owned(run / "checkpoints" / ".0001")
