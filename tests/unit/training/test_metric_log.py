"""metrics.jsonl is the truth, and what is shown of it; for W&B see test_tracking.py."""

import io
import json
import sys
import time
from types import SimpleNamespace

import pytest

from fitb.base.world import World
from fitb.config import TrackConfig
from fitb.rundir.writer import RunDir
from fitb.training.metric_log import Line, Tracker
from fitb.training.wandb_mirror import held_step, start, target_of, whole_lines


@pytest.fixture
def tracker(tmp_path, run_config):
    """Begin an attempt that logs to the file alone."""
    world = World()
    run = RunDir(tmp_path, 1, world)
    run.fence.mkdir(parents=True)
    config = run_config(steps=100, track=TrackConfig(wandb="disabled"))
    return lambda: Tracker(run, config, world)


def test_a_run_whose_lines_were_only_counted_goes_on_behind_its_last_step():
    old, older = {"_step": 11, "train/step": 120}, {"_step": 9, "train/step": 100}
    for starting_step, summary, held in ((12, old, 120), (12, older, 11), (0, {}, -1)):
        run = SimpleNamespace(starting_step=starting_step, summary=summary)
        assert held_step(run) == held


def test_w_and_b_is_told_where_a_run_belongs_and_what_it_is(run_config, tmp_path, monkeypatch):
    defined = []
    run = SimpleNamespace(define_metric=lambda name, step_metric=None: defined.append(name))
    run.init, run.Settings = lambda **settings: vars(run).update(settings) or run, dict
    monkeypatch.setitem(sys.modules, "wandb", run)
    config = run_config(track=TrackConfig(project="p", entity="e", name="n"))
    start(target_of("abc", "run", config), "online", tmp_path, 1.0)
    assert (run.id, run.resume, run.mode, run.dir) == ("abc", "allow", "online", str(tmp_path))
    assert (run.project, run.entity, run.name, run.config["optim.lr"]) == ("p", "e", "n", 5e-4)
    assert defined == ["train/step", "*"]


def test_a_line_that_is_being_written_is_left_for_later():
    file = io.BytesIO(b'{"train/step": 1}\n{"train/st')
    assert list(whole_lines(file)) == [{"train/step": 1}]
    assert file.read() == b'{"train/st'


def test_a_damaged_line_is_passed_over_and_kept_and_no_step_is_there_twice(
    tmp_path, tracker, caplog
):
    """A line of NULs in the middle ended every start with 93."""
    path = tmp_path / "metrics.jsonl"
    before = b'{"train/step": 1}\n' + bytes(20) + b'\n[2]\n{"train/step": 3}\n'
    path.write_bytes(before)
    attempt = tracker()
    for step in (2, 3, 4):
        attempt.log(step, {"a": 1.0})
    assert path.read_bytes() == before + b'{"train/step": 4, "a": 1.0}\n'
    assert any("metrics.jsonl: 2 damaged lines" in message for message in caplog.messages)


@pytest.mark.parametrize("damage", [b"", bytes(8), b"\xff\xfe"])
def test_a_damaged_id_of_w_and_b_is_set_aside_and_another_one_taken(tmp_path, tracker, damage):
    (tmp_path / "wandb_id").write_bytes(damage)
    found = tracker().wandb_id
    assert found.isalnum() and (tmp_path / "wandb_id").read_text().strip() == found
    assert (tmp_path / "wandb_id.bad").read_bytes() == damage
    assert tracker().wandb_id == found


def test_a_line_that_a_kill_tore_is_mended_and_its_step_logged_again(tmp_path, tracker):
    tracker().log(1, {"train/loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"train/step": 2, "train/lo')
    tracker().log(2, {"train/loss": 2.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["train/step"] for line in lines] == [1, 2]


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


def test_validation_stays_on_the_line_until_the_next_one(tracker, monkeypatch):
    told = []
    monkeypatch.setattr(
        "fitb.base.log.ProgressLine.tell",
        lambda self, parts, plain, last: told.append((parts, last)),
    )
    attempt = tracker()
    attempt.log(1, {"train/loss": 1.0, "val/loss_mlm": 4.5})
    attempt.log(100, {"train/loss": 2.0})
    assert "val mlm 4.500" in told[1][0]
    assert [last for _, last in told] == [False, True]
