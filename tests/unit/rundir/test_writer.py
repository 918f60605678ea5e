"""The run directory: begun once, entered again, refused under another configuration."""

import dataclasses
import os
import sys
import time
from pathlib import Path

import pytest
from executable import ran

from fitb.base import fsio
from fitb.base.errors import ConfigError
from fitb.base.world import World
from fitb.config import Config, OptimConfig
from fitb.config.parser import parse
from fitb.rundir import ownership
from fitb.rundir.events import read_events
from fitb.rundir.history import attempts_of
from fitb.rundir.names import hang_report
from fitb.rundir.writer import RunDir
from fitb.training.setup import open_run

ALONE = World()


def events(config):
    return list(fsio.read_lines(Path(config.run_dir) / "events.jsonl"))


def test_a_run_begins_with_its_configuration_and_provenance(run_config):
    config = run_config(seed=5, precision="fp32", micro_batch=4)
    run, _ = open_run(config, ALONE)
    assert run.attempt == 1
    path = Path(config.run_dir)
    saved = parse(Config, "fitb train", ["--config", str(path / "config.yaml")])
    assert saved == config
    assert (path / "checkpoints").is_dir()
    assert (path / "logs").is_dir()
    (provenance,) = fsio.read_json(path / "provenance.json")
    assert provenance["attempt"] == 1
    assert provenance["seed"] == 5
    assert {"commit", "diff", "packages", "hosts", "devices"} <= set(provenance)
    assert "torch" in provenance["packages"]
    assert [e["event"] for e in events(config)] == ["attempt"]


def begin(config):
    """Enter the run directory and log a step."""
    run, _ = open_run(config, ALONE)
    fsio.append_line(run.metrics, {"train/step": 1})


def test_the_end_moves_until_a_step_that_depends_on_it_is_logged(run_config):
    """A logged step stays in metrics.jsonl, so it counts even before it is saved."""
    wsd = OptimConfig(schedule="wsd", decay_steps=4, warmup_steps=1)
    config = dataclasses.replace(run_config(steps=20), optim=wsd)
    run, _ = open_run(config, ALONE)
    fsio.append_line(run.metrics, {"train/step": 16})
    longer = dataclasses.replace(config, steps=30)
    assert open_run(longer, ALONE)[1].steps == 30
    assert "steps: 30\n" in (run.path / "config.yaml").read_text()
    assert open_run(config, ALONE)[1].steps == 20
    fsio.append_line(run.metrics, {"train/step": 17})
    with pytest.raises(ConfigError, match="depends on .* step 17 is done; restore --steps 20"):
        open_run(longer, ALONE)


def test_the_end_does_not_move_before_what_is_done(run_config):
    constant = OptimConfig(schedule="constant", warmup_steps=1)
    config = dataclasses.replace(run_config(steps=20), optim=constant)
    run, _ = open_run(config, ALONE)
    fsio.append_line(run.metrics, {"train/step": 16})
    with pytest.raises(ConfigError, match="at steps=15: behind it step 16 is done"):
        open_run(dataclasses.replace(config, steps=15), ALONE)


def test_a_linear_schedule_depends_on_its_end_so_the_end_cannot_be_moved(run_config):
    config = dataclasses.replace(run_config(steps=8), optim=OptimConfig(warmup_steps=0))
    begin(config)
    with pytest.raises(ConfigError, match="step 1 is done; restore --steps 8"):
        open_run(dataclasses.replace(config, steps=9), ALONE)


def test_once_a_step_is_logged_a_changed_configuration_is_refused_with_every_key(run_config):
    config = run_config(steps=100_000)
    open_run(config, ALONE)
    mended = dataclasses.replace(config, steps=7)
    assert open_run(mended, ALONE)[0].attempt == 2
    begin(mended)
    before = (Path(config.run_dir) / "config.yaml").read_bytes()
    changed = dataclasses.replace(mended, optim=OptimConfig(lr=0.5), seed=5)
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.0005 -> 0\.5; seed: 0 -> 5"):
        open_run(changed, ALONE)
    assert (Path(config.run_dir) / "config.yaml").read_bytes() == before
    assert len(events(config)) == 3
    assert open_run(mended, ALONE)[0].attempt == 4


def test_a_moved_run_goes_on_under_its_new_name_and_what_may_change_may_change(
    run_config, tmp_path
):
    config = run_config()
    begin(config)
    Path(config.run_dir).rename(tmp_path / "moved")
    moved = dataclasses.replace(config, run_dir=str(tmp_path / "moved"))
    for number, changes in ((2, {}), (3, {"micro_batch": 1, "ds_config": "zero1"})):
        assert open_run(dataclasses.replace(moved, **changes), ALONE)[0].attempt == number
    provenance = fsio.read_json(tmp_path / "moved" / "provenance.json")
    assert [entry["attempt"] for entry in provenance] == [1, 2, 3]


def test_damaged_lines_of_the_record_stop_no_run_and_a_torn_one_is_mended(run_config, caplog):
    """One bad line of events.jsonl ended every start with 93."""
    config = run_config()
    open_run(config, ALONE)
    path = Path(config.run_dir) / "events.jsonl"
    before = path.read_bytes()
    path.write_bytes(bytes(30) + b"\n" + before + b'\xff\n[1]\n{}\n{"event": "att')
    assert open_run(config, ALONE)[0].attempt == 2
    assert any(f"{path}: 4 damaged lines" in message for message in caplog.messages)
    assert before in path.read_bytes()  # nothing is taken out of it
    assert [event["event"] for event in read_events(path.parent)] == ["attempt"] * 2


@pytest.mark.parametrize("damage", [b"", bytes(40), b"[{", b"\xff", b"{}", b"3"])
def test_a_damaged_provenance_is_set_aside_and_begun_anew(run_config, caplog, damage):
    """One of no bytes crashed every start."""
    config = run_config()
    open_run(config, ALONE)
    path = Path(config.run_dir) / "provenance.json"
    path.write_bytes(damage)
    assert open_run(config, ALONE)[0].attempt == 2
    assert [entry["attempt"] for entry in fsio.read_json(path)] == [2]
    assert path.with_name("provenance.json.bad").read_bytes() == damage
    assert any("provenance.json.bad" in message for message in caplog.messages)


def test_metrics_that_a_filesystem_denies_for_a_moment_are_not_begun_anew(run_config, monkeypatch):
    """An answer from the memory of a filesystem is no proof that a file is not there."""
    config = run_config()
    begin(config)
    run, _ = open_run(config, ALONE)
    stat = os.stat

    def denied(path, **settings):
        if Path(path) == run.metrics:
            raise FileNotFoundError(path)
        return stat(path, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", denied)
        os.close(run.open_metrics())
    assert [line["train/step"] for line in fsio.read_lines(run.metrics)] == [1]


def test_the_last_words_of_a_rank_become_an_event_at_the_next_start_once(run_config):
    config = run_config()
    run, _ = open_run(config, ALONE)
    (run.heartbeats / hang_report(3)).write_text("a call kept the interpreter to itself\n")
    for _ in range(2):
        open_run(config, ALONE)
    hangs = [e for e in events(config) if e["event"] == "hang"]
    assert [(e["attempt"], e["rank"], e["reason"]) for e in hangs] == [
        (1, 3, "rank 3: a call kept the interpreter to itself")
    ]
    first = attempts_of(events(config))[0]
    assert any("rank 3 hung" in note for note in first.notes)


def test_a_saved_configuration_that_is_torn_is_an_error_of_fitb(run_config):
    config = run_config()
    begin(config)
    path = Path(config.run_dir) / "config.yaml"
    for text in ("", "optim: {lr: [", "3"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            open_run(config, ALONE)


def test_a_run_that_another_has_begun_while_this_start_waited_keeps_its_configuration(
    run_config, monkeypatch
):
    """Waiting for a heartbeat takes half a minute, in which the owner may log its first step."""
    config = run_config()
    open_run(config, ALONE)
    saved = (Path(config.run_dir) / "config.yaml").read_bytes()
    real = ownership.take

    def waiting(*args, **kwargs):
        Path(config.run_dir, "metrics.jsonl").write_text('{"train/step": 1}\n')
        return real(*args, **kwargs)

    monkeypatch.setattr(ownership, "take", waiting)
    with pytest.raises(ConfigError, match="begun under another configuration: seed"):
        open_run(dataclasses.replace(config, seed=config.seed + 1), ALONE)
    assert (Path(config.run_dir) / "config.yaml").read_bytes() == saved
    assert open_run(config, ALONE)[0].attempt == 3


def test_whoever_has_lost_the_run_cuts_nothing_off_its_metrics_or_configuration(run_config):
    config = run_config()
    run, _ = open_run(config, ALONE)
    run.metrics.write_text('{"train/step": 1}\n{"train/')
    ownership.take(run.path, {})
    with pytest.raises(ownership.Replaced):
        run.open_metrics()
    assert run.metrics.read_text() == '{"train/step": 1}\n{"train/'
    with pytest.raises(ownership.Replaced):
        ownership.write_fenced(run.fence, run.path / "config.yaml", "seed: 3\n")
    assert "seed: 3" not in (run.path / "config.yaml").read_text()


def test_events_have_a_time_an_attempt_and_details_and_come_from_the_first_rank(tmp_path):
    run = RunDir(tmp_path, 4, ALONE)
    run.fence.mkdir(parents=True)
    run.event("save", step=3)
    RunDir(tmp_path, 4, World(1, 2)).event("save", step=4)
    (event,) = fsio.read_lines(tmp_path / "events.jsonl")
    assert (event["event"], event["attempt"], event["step"]) == ("save", 4, 3)
    assert event["time"].endswith("+00:00")


def test_an_event_knows_the_age_of_its_process_to_a_tenth_of_a_second():
    """It was off by up to a second, the fraction at which the machine had booted."""
    code = "from fitb.rundir.writer import _age_s; import time; print(time.time() - _age_s())"
    before = time.time()
    assert before - 0.1 <= float(ran(sys.executable, "-c", code).stdout) <= time.time()
