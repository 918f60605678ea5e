"""metrics.jsonl is the truth; W&B mirrors it and may fail."""

import io
import json
import logging
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from fitb.base.world import World
from fitb.config import TrackConfig
from fitb.rundir.writer import RunDir
from fitb.training.metric_log import Line, Tracker
from fitb.training.wandb_mirror import held_step, whole_lines


class StandInRun:
    def __init__(self, starting_step=0, **settings):
        self.settings, self.starting_step, self.summary = settings, starting_step, {}
        self.logged, self.metrics, self.finished = [], [], []
        self.error = None

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, record, step, commit):
        if self.error:
            raise self.error
        assert step == record["train/step"] and commit
        self.logged.append(record)

    def finish(self, exit_code):
        if self.error:
            raise self.error
        self.finished.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the W&B module that keeps every run."""
    module = SimpleNamespace(runs=[], error=None, starting_step=0)

    def init(**settings):
        if module.error:
            raise module.error
        module.runs.append(StandInRun(module.starting_step, **settings))
        return module.runs[-1]

    module.init, module.teardown, module.setup = init, lambda: None, lambda settings: None
    module.Settings = lambda **settings: settings
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def make_tracker(tmp_path, run_config):
    def make(rank=0, **track):
        world = World(rank, rank + 1)
        run = RunDir(tmp_path, 1, world)
        run.fence.mkdir(parents=True, exist_ok=True)
        settings = {"wandb": "offline"} | track
        return Tracker(run, run_config(steps=100, track=TrackConfig(**settings)), world)

    return make


def wait_for(condition, limit_s=10.0):
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_w_and_b_gets_the_same_records(tmp_path, make_tracker, wandb):
    tracker = make_tracker()
    for step in (1, 2):
        tracker.log(step, {"train/loss": 1.0 / step})
    tracker.close(85)
    assert wandb.runs[0].logged == lines(tmp_path)
    assert wandb.runs[0].metrics == [("train/step", None), ("*", "train/step")]
    assert wandb.runs[0].finished == [85]


def test_a_replayed_step_is_not_logged_twice_and_all_attempts_are_one_w_and_b_run(
    tmp_path, make_tracker, wandb
):
    first = make_tracker()
    for step in (10, 20, 30):
        first.log(step, {"train/loss": 1.0})
    first.close(85)
    second = make_tracker()
    for step in (20, 30, 40):
        second.log(step, {"train/loss": 2.0})
    second.log(40, {"train/loss": 3.0})
    second.close(0)
    assert [line["train/step"] for line in lines(tmp_path)] == [10, 20, 30, 40]
    assert lines(tmp_path)[-1]["train/loss"] == 2.0
    logged = [[record["train/step"] for record in run.logged] for run in wandb.runs]
    assert logged == [[10, 20, 30], [40]]
    assert {run.settings["id"] for run in wandb.runs} == {first.wandb_id} == {second.wandb_id}


def test_a_resumed_online_run_gets_the_configuration_and_what_the_server_lacks_first(
    tmp_path, make_tracker, wandb
):
    first = make_tracker()
    for step in (10, 20, 30):
        first.log(step, {"train/loss": 1.0})
    first.close(85)
    wandb.starting_step = 11  # it holds step 10
    second = make_tracker(wandb="online", project="p", entity="e", name="n")
    second.log(40, {"train/loss": 2.0})
    second.close(0)
    assert [r["train/step"] for r in wandb.runs[1].logged] == [20, 30, 40]
    settings = wandb.runs[1].settings
    wanted = {"resume": "allow", "project": "p", "entity": "e", "name": "n", "dir": str(tmp_path)}
    assert {name: settings[name] for name in wanted} == wanted
    assert settings["config"]["optim.lr"] == 5e-4


def test_a_run_whose_lines_were_only_counted_goes_on_behind_its_last_step():
    run = StandInRun(starting_step=12)
    run.summary = {"_step": 11, "train/step": 120}
    assert held_step(run) == 120
    run.summary = {"_step": 9, "train/step": 100}  # older than the last line
    assert held_step(run) == 11
    assert held_step(StandInRun(starting_step=0)) == -1


def test_a_line_that_is_being_written_is_left_for_later():
    file = io.BytesIO(b'{"train/step": 1}\n{"train/st')
    assert list(whole_lines(file)) == [{"train/step": 1}]
    assert file.read() == b'{"train/st'


def test_a_damaged_line_is_passed_over_and_kept_and_no_step_is_there_twice(
    tmp_path, make_tracker, caplog
):
    """A line of NULs in the middle ended every start with 93."""
    path = tmp_path / "metrics.jsonl"
    before = b'{"train/step": 1}\n' + bytes(20) + b'\n[2]\n{"train/step": 3}\n'
    path.write_bytes(before)
    tracker = make_tracker(wandb="disabled")
    for step in (2, 3, 4):
        tracker.log(step, {"a": 1.0})
    assert path.read_bytes() == before + b'{"train/step": 4, "a": 1.0}\n'
    assert any("metrics.jsonl: 2 damaged lines" in message for message in caplog.messages)


@pytest.mark.parametrize("damage", [b"", bytes(8), b"\xff\xfe"])
def test_a_damaged_id_of_w_and_b_is_set_aside_and_another_one_taken(
    tmp_path, make_tracker, caplog, damage
):
    (tmp_path / "wandb_id").write_bytes(damage)
    found = make_tracker(wandb="disabled").wandb_id
    assert found.isalnum() and (tmp_path / "wandb_id").read_text().strip() == found
    assert (tmp_path / "wandb_id.bad").read_bytes() == damage
    assert make_tracker(wandb="disabled").wandb_id == found


def test_a_line_that_a_kill_tore_is_mended_and_its_step_logged_again(tmp_path, make_tracker):
    make_tracker(wandb="disabled").log(1, {"train/loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"train/step": 2, "train/lo')
    make_tracker(wandb="disabled").log(2, {"train/loss": 2.0})
    assert [line["train/step"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("when", ["start", "log", "end"])
@pytest.mark.parametrize("error", [ValueError("closed"), OSError("gone"), SystemError("broken")])
def test_w_and_b_that_fails_is_a_warning_and_stops_neither_training_nor_the_file(
    tmp_path, make_tracker, wandb, error, when, caplog
):
    wandb.error = error if when == "start" else None
    tracker = make_tracker()
    if when != "start":
        wait_for(lambda: wandb.runs)
    if when == "log":
        wandb.runs[0].error = error
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            tracker.log(step, {"train/loss": 1.0})
        if when == "end":
            wait_for(lambda: len(wandb.runs[0].logged) == 3)
            wandb.runs[0].error = error
        tracker.close(0)
    assert [line["train/step"] for line in lines(tmp_path)] == [1, 2, 3]
    (warning,) = [r.message for r in caplog.records if "W&B" in r.message]
    assert str(error) in warning


def test_w_and_b_that_hangs_at_the_end_is_left_behind(make_tracker, wandb, monkeypatch, caplog):
    monkeypatch.setattr("fitb.training.wandb_mirror.FINISH_LIMIT_S", 0.05)
    tracker, never = make_tracker(), threading.Event()
    wait_for(lambda: wandb.runs)
    wandb.runs[0].finish = lambda exit_code: never.wait(10)
    with caplog.at_level(logging.WARNING):
        tracker.close(0)
    never.set()
    assert "abandoned" in caplog.text


def test_ranks_other_than_the_first_write_nothing_and_w_and_b_can_be_disabled(
    tmp_path, make_tracker, wandb
):
    tracker = make_tracker(rank=1)
    tracker.log(1, {"train/loss": 1.0})
    tracker.close(0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    make_tracker(wandb="disabled").close(0)
    assert wandb.runs == []


NOW_S = time.mktime((2026, 11, 26, 10, 0, 0, 0, 0, -1))
METRICS = {
    "train/loss": 5.1234,
    "student/top1": 0.25,
    "perf/tokens_per_s": 12345.6,
    "perf/steps_per_s": 2.0,
    "optim/loss_scale": 65536.0,
}


def test_line_of_a_terminal_says_how_far_how_fast_and_until_when():
    line = Line(250, 1000, METRICS, {"val/loss_mlm": 4.5, "val/top1": 0.3})
    assert line.parts(NOW_S + 3600, NOW_S) == [
        "step 250/1000",
        "25%",
        "ends 11:00",
        "loss 5.123",
        "val mlm 4.500",
        "12,346 tokens/s",
        "scale 65536",
    ]
    assert "ends Nov 28 10:00" in line.parts(NOW_S + 2 * 86_400, NOW_S)
    little = {"train/loss": 1.0, "optim/loss_scale": 1.0}
    assert Line(1, 4, little, {}).parts(None, NOW_S) == ["step 1/4", "25%", "loss 1.000"]


def test_end_is_expected_at_the_rate_of_the_attempt_and_at_first_of_the_step():
    line = Line(200, 1000, METRICS, {})
    assert line.expected_end_s(200, NOW_S, NOW_S) == NOW_S + 400  # 800 steps, 2 a second
    assert line.expected_end_s(100, NOW_S - 100, NOW_S) == NOW_S + 800  # 100 steps took 100 s
    assert Line(1, 2, {}, {}).expected_end_s(1, NOW_S, NOW_S) is None


def test_line_of_a_log_is_as_it_was():
    line = Line(250, 1000, METRICS | {"val/loss_mlm": 4.5, "val/top1": 0.3}, {})
    assert line.plain() == (
        "step 250/1000  loss 5.123  top1 25.0%  val mlm 4.500  val top1 30.0%"
        "  12,346 tokens/s  6.2 min left"
    )


def test_validation_stays_on_the_line_until_the_next_one(make_tracker, monkeypatch):
    told = []
    monkeypatch.setattr(
        "fitb.base.log.ProgressLine.tell",
        lambda self, parts, plain, last: told.append((parts, last)),
    )
    tracker = make_tracker(wandb="disabled")
    tracker.log(1, {"train/loss": 1.0, "val/loss_mlm": 4.5})
    tracker.log(100, {"train/loss": 2.0})
    assert "val mlm 4.500" in told[1][0]
    assert [last for _, last in told] == [False, True]
