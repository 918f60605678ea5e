"""A rank that dies or hangs ends the others, and a second job on a run is refused."""

from __future__ import annotations

import contextlib
import signal
import socket
import time

import job
import pytest
import suspend

from fitb.cluster.local import LocalRun

# Rank 1 waits for ever for the rows of its eighth step, in another thread than the loop.
HANGING = """
import os, time
if os.environ.get("RANK") == "1":
    from fitb.data.stream import RowStream
    batch = RowStream.batch
    def hanging(self, step):
        while step == 7:
            time.sleep(1)
        return batch(self, step)
    RowStream.batch = hanging
"""


@pytest.fixture
def flags(quick_flags):
    """Steps enough to be hit in the middle of."""
    return [*quick_flags, "--steps", "5000", "--eval.every_steps", "0"]


def test_a_rank_that_is_killed_takes_the_others_down_in_seconds(flags, tmp_path):
    run = tmp_path / "run"
    with LocalRun(job.command(flags, run), 3, crash_grace_s=60) as ranks:
        job.wait_for_step(ranks, run, 3)
        ranks.signal(signal.SIGKILL, 0)
        killed_s = time.monotonic()
        code = ranks.wait(60)
    assert time.monotonic() - killed_s < 15
    assert code not in (0, 85, 93)


def test_a_hang_leaves_the_stacks_of_every_rank_and_a_reason_and_the_run_goes_on(flags, tmp_path):
    run, site = tmp_path / "run", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HANGING)
    few = [*flags, "--steps", "10", "--checkpoint.every_steps", "5", "--stop.hang_s", "30"]
    flags = [*few, "--data.prefetch_steps", "0"]
    with LocalRun(job.command(flags, run), 2, env={"PYTHONPATH": str(site)}) as ranks:
        assert ranks.wait(120) not in (0, 85, 93)
    (event,) = job.events(run, "hang")
    assert event["step"] == 7
    stacks = [run / "logs" / f"stacks-0001-rank-0000{rank}.txt" for rank in (0, 1)]
    assert "hanging" in stacks[1].read_text()
    assert "all_reduce" in stacks[0].read_text() and "loop.py" in stacks[0].read_text()
    assert job.run(few, run) == 0
    assert job.events(run, "resume")[0]["step"] == 5
    assert job.steps(run) == list(range(1, 11))


def test_a_job_that_was_suspended_for_longer_than_the_deadline_goes_on(flags, tmp_path):
    """A timer ran on while the processes were stopped, and ended them as they woke."""
    run = tmp_path / "run"
    few = [*flags, "--steps", "60", "--checkpoint.every_steps", "0", "--stop.hang_s", "30"]
    found = suspend.suspended(few, run, stop_s=55, skew_s=2)
    assert found == {"code": 0, "stacks": []}
    assert job.steps(run) == list(range(1, 61)) and len(job.events(run, "attempt")) == 1


def test_a_second_job_on_a_run_that_lives_refuses_and_the_first_goes_on(flags, tmp_path):
    run = tmp_path / "run"
    few = [*flags, "--steps", "600", "--checkpoint.every_steps", "0"]
    with LocalRun(job.command(few, run), 1) as first:
        job.wait_for_step(first, run, 3)
        second = job.fitb("train", *few, "--run_dir", str(run))
        assert first.running()
        assert second.returncode == 93, second.stderr
        assert "owned by attempt 1" in second.stderr
        assert "one job at a time" in second.stderr
        first.signal(signal.SIGTERM)
        assert first.wait(60) == 85
    assert len(job.events(run, "attempt")) == 1


def test_a_run_starts_beside_another_one_and_beside_a_lock_that_a_killed_build_left(
    quick_flags, tmp_path
):
    """A run of one process listened at port 29500, so a host had room for one. And DeepSpeed
    compiled an operator at its first start, under a lock file in the home directory: a rank killed
    meanwhile left it, and every start from then on waited for it for ever."""
    cache = tmp_path / "cache"
    flags = [*quick_flags, "--steps", "2", "--run_dir", str(tmp_path / "run")]
    with socket.socket() as other:
        with contextlib.suppress(OSError):  # somebody else has it, which is as good
            other.bind(("127.0.0.1", 29500))
            other.listen()
        done = job.fitb("train", *flags, env={"TORCH_EXTENSIONS_DIR": str(cache)})
    assert done.returncode == 0, done.stderr
    assert not cache.exists()  # nothing was compiled, so no lock was taken
