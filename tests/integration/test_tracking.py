"""What a W&B server gets: online, of offline runs, and by `fitb sync`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import job
import psutil
import pytest
from wandb_server import KEY, WandbServer

from fitb.base.errors import ConfigError, DataError, SystemFault
from fitb.base.world import World
from fitb.config import Config, TrackConfig
from fitb.config.yaml import to_yaml
from fitb.rundir.writer import RunDir
from fitb.tools.sync import MERGED, SyncConfig, sync
from fitb.training.metric_log import Tracker


def upload(segment, server):
    """Have W&B send an offline run."""
    command = [sys.executable, "-m", "wandb", "sync", str(segment)]
    env = os.environ | server.env
    subprocess.run(command, check=True, timeout=60, cwd=segment.parent, env=env)  # it leaves a log


@pytest.fixture
def server(monkeypatch):
    with WandbServer() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


def attempt(folder, steps, exit_code=85, mode="online"):
    """Log steps as one attempt of a training does; None leaves it unfinished."""
    folder.mkdir(exist_ok=True)
    config = Config(str(folder), steps=100, track=TrackConfig(wandb=mode))  # type: ignore[arg-type]
    (folder / "config.yaml").write_text(to_yaml(config))
    run = RunDir(folder, 1, World(0, 1))
    run.fence.mkdir(parents=True, exist_ok=True)
    run.event("attempt")
    tracker = Tracker(run, config, World(0, 1))
    for step in steps:
        tracker.log(step, {"train/loss": 1.0 / step})
    if exit_code is not None:
        run.event("stop", reason="told to", exit_code=exit_code)
        tracker.close(exit_code)
    return tracker


def held(server, folder):
    """Steps that the server holds of the one run that was logged."""
    assert set(server.runs) <= {(folder / "wandb_id").read_text().strip()}
    return [step for run in server.runs.values() for step in run.steps()]


def wandb_process(pid):
    return next(c for c in psutil.Process(pid).children() if c.name() == "wandb-core")


KILLED = """
import sys; sys.path[:0] = {tests!r}
import os, signal
from pathlib import Path
from test_tracking import attempt
attempt(Path({folder!r}), range(8, 13), None)  # W&B has hardly begun
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_interrupted_and_killed_has_every_step_once_on_the_server(server, tmp_path):
    run = tmp_path / "run"
    attempt(run, range(1, 6))
    attempt(run, range(4, 9))  # it replays two
    assert held(server, run) == job.steps(run) == list(range(1, 9))
    tests = [str(folder) for folder in Path(__file__).parents[:2]]
    code = KILLED.format(tests=tests, folder=str(run))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert job.steps(run) == list(range(1, 13)) and held(server, run) == list(range(1, 9))
    attempt(run, range(11, 16), 0)
    assert held(server, run) == job.steps(run) == list(range(1, 16))
    (held_run,) = server.runs.values()
    assert [line["_step"] for line in held_run.history()] == list(range(1, 16))
    assert held_run.exit_codes[-1] == 0 and held_run.display_name == "run"


def test_what_an_attempt_without_a_server_logged_is_filled_in_by_the_next(
    server, tmp_path, monkeypatch
):
    """W&B refused to start offline after it had failed online under the same id."""
    monkeypatch.setattr("fitb.training.wandb_mirror.START_LIMIT_S", 1.0)
    run = tmp_path / "run"
    attempt(run, range(1, 4))
    server.stop()
    attempt(run, range(4, 7))
    server.start()
    monkeypatch.undo()
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    attempt(run, range(7, 10), 0)
    assert held(server, run) == list(range(1, 10))
    (segment,) = run.glob("wandb/offline-run-*")
    with WandbServer() as other:
        upload(segment, other)
        assert held(other, run) == [4, 5, 6]


HANGING = """
import json, os, signal, sys, time
import fitb.training.wandb_mirror as mirror
from pathlib import Path
from fitb.base import fsio, log
log.setup()
folder, when = Path(sys.argv[1]), sys.argv[2]
mirror.FINISH_LIMIT_S, mirror._UPLOAD_LIMIT_S = 2.0, 1.0
target = mirror.WandbRun("abcd1234", "fitb", None, "run", {})
metrics = folder / "metrics.jsonl"
follower = mirror.Mirror(metrics, target, "online", folder, -1)
def step(number):
    fsio.append_line(metrics, {"train/step": number, "train/loss": 1.0})
    follower.grown()
step(1)
print("begun", flush=True)
sys.stdin.readline()
begun_s = time.monotonic()
for number in range(2, 102):
    step(number)
print(time.monotonic() - begun_s, flush=True)
if when == "crash":
    raise SystemExit("a training that crashed")
follower.finish(85)
"""


@pytest.mark.parametrize("when", ["start", "later", "crash", "frozen", "killed"])
def test_a_server_that_never_answers_costs_no_step_and_at_the_end_no_more_than_the_limit(
    server, tmp_path, when
):
    """Also where nobody closes W&B, and where its own process is what hangs."""
    if when == "start":
        server.hold.clear()
    code = [sys.executable, "-c", HANGING, str(tmp_path), when]
    child = subprocess.Popen(
        code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdin and child.stdout and child.stdout.readline() == "begun\n"
    end_s = time.monotonic() + 30
    asked = "RunResumeStatus" if when == "start" else "file_stream"
    while asked not in server.requests and time.monotonic() < end_s:
        time.sleep(0.02)
    server.hold.clear()
    hung = wandb_process(child.pid)
    if when == "frozen":
        hung.suspend()
    if when == "killed":  # as a signal to every process of a job may
        hung.kill()
    begun_s = time.monotonic()
    out, err = child.communicate("go on\n", timeout=60)
    took_s = time.monotonic() - begun_s
    assert child.returncode == (1 if when == "crash" else 0), err
    assert len(job.metrics(tmp_path)) == 101
    assert float(out) < 2, "a step waited"
    assert took_s < float(out) + 2.0 + 3.0 + 1.5  # finish, kill, and the interpreter's own end
    assert "W&B" in err and "fitb sync" in err, err
    assert "Exception ignored" not in err, err  # by the interpreter at its end
    assert psutil.wait_procs([hung], timeout=5)[1] == []


def test_a_full_disk_under_w_and_b_stops_no_step(server, tmp_path, small_disk, monkeypatch):
    monkeypatch.setattr("fitb.training.wandb_mirror.FINISH_LIMIT_S", 5.0)
    run = tmp_path / "run"
    run.mkdir()
    (run / "wandb").symlink_to(small_disk)
    tracker = attempt(run, range(1, 4), None, "offline")
    with open(small_disk / "rest", "wb") as file:
        while True:
            try:
                os.write(file.fileno(), b"x" * 4096)
            except OSError:
                break
    for step in range(4, 20):
        tracker.log(step, {"train/loss": 1.0})
    begun_s = time.monotonic()
    tracker.close(85)
    attempt(run, range(20, 30), 85, "offline")
    attempt(run, range(30, 40), 0)
    assert time.monotonic() - begun_s < 3 * (5.0 + 3.0 + 1.0)
    assert job.steps(run) == list(range(1, 40))


def test_sync_sends_a_run_once_however_often_it_is_called(server, tmp_path):
    run = tmp_path / "run"
    attempt(run, range(1, 5), mode="disabled")
    attempt(run, range(5, 9), 0, mode="disabled")
    assert "sent 8 of 8 lines" in sync(SyncConfig(str(run)))
    assert "sent 0 of 8 lines" in sync(SyncConfig(str(run)))
    assert held(server, run) == list(range(1, 9))
    (held_run,) = server.runs.values()
    assert held_run.summary()["events/attempt"] == 2
    assert held_run.summary()["events/exit_code"] == 0 == held_run.exit_codes[-1]
    assert json.loads(held_run.config)["steps"]["value"] == 100
    finished = len(held_run.exit_codes)
    attempt(run, range(9, 11), None, mode="disabled")  # at work
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"train/step": 11, "train/')
    assert "sent 2 of 10 lines" in sync(SyncConfig(str(run)))
    assert held(server, run) == list(range(1, 11))
    assert len(held_run.exit_codes) == finished
    assert not (run / "wandb").exists()


def test_a_merged_segment_holds_all_attempts_and_w_and_b_uploads_it_as_one_run(server, tmp_path):
    run = tmp_path / "run"
    attempt(run, range(1, 5), mode="offline")
    attempt(run, range(3, 9), 0, mode="offline")
    for _ in range(2):  # the second takes the place of the first
        done = sync(SyncConfig(str(run), offline=True))
    (segment,) = run.glob(f"{MERGED}/wandb/offline-run-*")
    assert str(segment) in done
    upload(segment, server)
    assert held(server, run) == list(range(1, 9))
    (held_run,) = server.runs.values()
    logged = [{k: r[k] for k in ("train/step", "train/loss")} for r in held_run.history()]
    assert logged == [{key: r[key] for key in logged[0]} for r in job.metrics(run)]


def test_sync_says_what_is_wrong(server, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"is not a run: .*config.yaml is missing"):
        sync(SyncConfig(str(run)))
    attempt(run, [], mode="disabled")
    with pytest.raises(DataError, match="holds no metrics"):
        sync(SyncConfig(str(run)))
    attempt(run, [1], mode="disabled")
    server.status["file_stream"] = 403
    with pytest.raises(SystemFault, match="up to step -1, expected 1"):
        monkeypatch.setattr("fitb.tools.sync._CHECK_WAIT_S", 0.0)
        sync(SyncConfig(str(run)))
    server.status[""] = 401
    with pytest.raises(SystemFault, match=r"did not take run \w+ \(.*401.*--offline"):
        sync(SyncConfig(str(run)))


def test_wandb_holds_student_and_distillation_losses_as_separate_series_across_attempts(
    server, quick_flags, tmp_path, monkeypatch, capfd
):
    """And no secret is in a file or on the terminal; W&B's debug log did hold the key."""
    for name, value in {"WANDB_DEBUG": "true", "WANDB_CORE_DEBUG": "true", "A_TOKEN": KEY}.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    flags = [*quick_flags, "--track.wandb", "auto", "--precision", "fp32"]
    assert job.run_and_signal(flags, run, signal.SIGTERM, at_step=4, rank=None) == 85
    assert job.run([*flags, "--micro_batch", "8"], run) == 0
    assert held(server, run) == job.steps(run) == list(range(1, 25))
    (held_run,) = server.runs.values()
    logged, truth = held_run.history(), job.metrics(run)
    assert held_run.exit_codes == [85, 0]
    files = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any("debug" in path.name for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    told = capfd.readouterr()
    assert "loss" in told.err and KEY not in told.out + told.err
    assert [{k: v for k, v in r.items() if k[0] != "_"} for r in logged] == truth
    layers = {f"distill/{kind}/layer_{n}" for kind in ("hidden", "attention") for n in (1, 2)}
    assert {"student/loss_mlm", "distill/total", "distill/logits", *layers} <= truth[0].keys()
    assert all(record["perf/tflops"] > 0 and "perf/mfu" not in record for record in logged)
    assert all("val/loss_mlm" in logged[step - 1] for step in (8, 16, 24))
