"""A run's state from its files: every end that a run can have, huge files, silence, watching."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from executable import executable

from fitb.base.errors import ConfigError
from fitb.base.fsio import append_line
from fitb.cli import main
from fitb.cluster.slurm import reported_state
from fitb.rundir.events import now
from fitb.rundir.history import Attempt
from fitb.rundir.metrics import rate, tail_records
from fitb.rundir.names import hang_report
from fitb.rundir.status import Life, duration, state_of, status
from fitb.tools.status import as_json, line, render

NOW_S = 1_800_000_000.0
LIVE = Life(heard_s=3.0, limit_s=60.0, ended=False, step=5, silent=[])
LEFT = Attempt(1, exit_code=85, reason="SIGTERM")


def at(seconds_ago):
    return datetime.datetime.fromtimestamp(NOW_S - seconds_ago, datetime.timezone.utc)


@pytest.mark.parametrize(
    ("attempt", "life", "slurm", "state", "said"),
    [
        (None, LIVE, None, "not started", "no attempt has begun"),
        (Attempt(1), LIVE, None, "running", ""),
        (Attempt(1, first_step=5), LIVE, "RUNNING", "running", "it is starting"),
        (Attempt(1, exit_code=0, reason="early stopping"), LIVE, None, "finished", "early stop"),
        (replace(LEFT, decision="requeue", decided="as asked"), LIVE, None, "waiting", "as asked"),
        (replace(LEFT, decision="requeue"), LIVE, "CANCELLED", "stopped", "Slurm reports CANC"),
        (replace(LEFT, decision="stop", decided="10 of 10"), LIVE, None, "stopped", "10 of 10"),
        (Attempt(1, exit_code=93, reason="bad key"), LIVE, None, "stopped", "bad key"),
        (replace(LEFT, ended=at(5)), LIVE, None, "waiting", "SIGTERM"),
        (replace(LEFT, ended=at(5)), LIVE, "CANCELLED", "stopped", "start the same command"),
        (replace(LEFT, ended=at(500)), LIVE, None, "stopped", "saved, start the same command"),
        (replace(LEFT, ended=at(500)), LIVE, "PENDING", "waiting", "SIGTERM"),
        (Attempt(1), replace(LIVE, heard_s=61.0), "RUNNING", "lost", "no sign of life .* 1 min"),
        (Attempt(1), replace(LIVE, ended=True), None, "lost", "ended without"),
        (Attempt(1), LIVE, "FAILED", "stopped", "Slurm reports FAILED"),
        (Attempt(1), replace(LIVE, heard_s=900.0), "PENDING", "waiting", "requeued"),
    ],
)
def test_state_follows_from_the_newest_attempt_its_life_and_slurm(
    attempt, life, slurm, state, said
):
    attempts = [replace(LEFT, decision="requeue"), attempt] if attempt else []
    found, why = state_of([a for a in attempts if a], life, slurm, NOW_S)
    assert found == state
    assert (said == why == "") or bool(said and re.search(said, why))


def write(run, events, records):
    run.mkdir(exist_ok=True)
    for name, lines in (("events.jsonl", events), ("metrics.jsonl", records)):
        (run / name).write_text("".join(f"{json.dumps(entry)}\n" for entry in lines))
    return run


def event(name, seconds_ago=10, **more):
    now = datetime.datetime.now(datetime.timezone.utc)
    moment = now - datetime.timedelta(seconds=seconds_ago)
    return {"time": moment.isoformat(), "event": name, **more}


def logged(steps, per_s, **more):
    return [{"train/step": step, "perf/steps_per_s": per_s, **more} for step in steps]


@pytest.fixture
def run(tmp_path):
    """A run at step 400 of 1,000 in its second attempt, saved at 350."""
    events = [
        event("attempt", 300, attempt=1, world_size=2, hosts=["a"], job="x"),
        event("stop", 200, attempt=1, step=200, exit_code=85, reason="SIGTERM"),
        event("requeue", 199, step=200, exit_code=85, stalled=0, job="x", reason="as asked"),
        event("attempt", 100, attempt=2, world_size=4, hosts=["a", "b"], job="x", restart=1),
        event("resume", 99, attempt=2, step=200),
        event("save", 20, attempt=2, step=350, seconds={"write": 1.5, "verify": 0.5}),
    ]
    records = [*logged(range(10, 201, 10), 2.0), *logged(range(210, 401, 10), 4.0)]
    records[25]["val/loss_mlm"] = 2.5
    records[30]["val/loss_mlm"] = 3.5
    folder = write(tmp_path / "run", events, records)
    (folder / "config.yaml").write_text("steps: 1000\ntrack:\n  every_steps: 10\n")
    (folder / "checkpoints" / "step-0000350").mkdir(parents=True)
    manifest = folder / "checkpoints" / "step-0000350" / "manifest.json"
    manifest.write_text('{"best_loss": 2.75, "best_step": 150}')
    (folder / "logs").mkdir()
    for name in ("x.0.out", "x.1.out", "w.0.out"):
        (folder / "logs" / name).touch()
    return folder


def test_a_running_run_tells_steps_rate_end_save_risk_best_and_logs(run):
    found = status(run)
    assert (found.state, found.step, found.steps) == ("running", 400, 1000)
    assert found.steps_per_s == pytest.approx(4.0)  # of this attempt alone
    assert found.left_s == pytest.approx(150.0)
    assert found.expected_end is not None
    assert found.save is not None
    assert (found.save.step, found.save.seconds, found.save.steps_at_risk) == (350, 2.0, 50)
    assert (found.best_loss, found.best_step) == (2.5, 260)
    assert found.logs == str(run / "logs" / "x.0.out")
    assert [a.number for a in found.attempts] == [1, 2]
    page = render(found)
    for text in (
        "running at step 400 of 1,000 (40.0%), 2 min 30 s left",
        "4 steps/s",
        "step 350, 20 s ago, took 2.0 s; 50 steps done since",
        "validation loss 2.5000 at step 260",
        "2 processes on a  job x  steps 0 -> 200  1 min 40 s  exit 85: SIGTERM; as asked",
        "4 processes on a, b  job x restart 1  steps 200 -> 400",
    ):
        assert text in page
    plain = as_json(found)
    assert datetime.datetime.fromisoformat(plain["expected_end"]) == found.expected_end.replace(
        microsecond=found.expected_end.microsecond // 1000 * 1000
    )


def test_a_replayed_step_counts_from_the_resume_until_it_is_passed(run):
    """metrics.jsonl has steps of an earlier attempt that this one has not reached again."""
    events = [*map(json.loads, (run / "events.jsonl").read_text().splitlines())]
    events += [event("attempt", 1, attempt=3), event("resume", 0, attempt=3, step=350)]
    write(run, events, logged(range(10, 401, 10), 4.0))
    os.utime(run / "metrics.jsonl", (time.time() - 60,) * 2)
    found = status(run)
    assert (found.step, found.save and found.save.steps_at_risk) == (350, 0)


def test_heartbeats_tell_the_step_who_is_silent_and_when_all_are(run):
    folder = run / "attempts" / "0002"
    folder.mkdir(parents=True)
    for rank, step in enumerate([431, 431, 407]):
        beat = {"time": time.time(), "step": step, "host": f"h{rank}", "pid": 1}
        (folder / f"rank-{rank:05d}.json").write_text(json.dumps(beat))
    old_s = time.time() - 100
    os.utime(folder / "rank-00002.json", (old_s, old_s))
    found = status(run)
    assert (found.state, found.step, found.silent) == ("running", 431, ["rank 2 on h2"])
    assert found.save is not None and found.save.steps_at_risk == 81
    later = status(run, now_s=time.time() + 90)
    assert (later.state, later.expected_end) == ("lost", None)
    (folder / "ended").touch()  # its heartbeats stay where they are
    assert (status(run).state, status(run).silent) == ("lost", [])
    (folder / "ended").unlink()
    folder.rename(folder.with_name("0002.ended"))  # as earlier versions did
    assert status(run).state == "lost"


def test_silence_without_heartbeats_means_something_after_ten_minutes(run):
    assert status(run, now_s=time.time() + 590).state == "running"
    assert status(run, now_s=time.time() + 620).state == "lost"


def test_only_the_tail_of_a_huge_file_is_read(tmp_path):
    run = write(tmp_path / "run", [event("attempt", attempt=1)], [])
    with open(run / "metrics.jsonl", "r+b") as file:
        file.seek(64 << 30)  # a hole that no memory holds
        for record in logged(range(2, 40), 5.0):
            file.write(json.dumps(record).encode() + b"\n")
        file.write(b'{"train/step": 40, "perf')
    found = status(run)
    assert (found.step, found.steps_per_s) == (39, pytest.approx(5.0))
    records = tail_records(run, num_bytes=200)
    assert [r["train/step"] for r in records] == [37, 38, 39]


def test_rate_is_of_the_last_minutes_and_weighs_intervals_by_their_time():
    slow, fast = logged(range(10, 1001, 10), 1.0), logged(range(1010, 3001, 10), 4.0)
    assert rate([*slow, *fast], 0) == pytest.approx(4.0, rel=0.01)  # 300 s of it
    mixed = [*logged(range(10, 111, 10), 1.0), *logged(range(120, 211, 10), 10.0)]
    assert rate(mixed, 0) == pytest.approx(200 / (100 + 10))
    assert rate(mixed, 110) == pytest.approx(10.0)
    assert rate(mixed, 210) is None
    assert rate(mixed[:1], 0) == 1.0
    assert rate([], 0) is None


def test_the_folder_of_another_thing_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"is not the folder of a run: none of config.yaml"):
            status(folder)
    assert main(["status", str(tmp_path)]) == 2


def test_damaged_files_are_passed_over_with_a_word_that_names_the_line(run, caplog):
    whole = status(run)
    lines = (run / "events.jsonl").read_bytes().splitlines(keepends=True)
    odd = {"event": "save", "attempt": "x", "step": [], "time": 3, "seconds": {"write": "y"}}
    lines[1:1] = [b"\0" * 40 + b"\n", b"\xff\n", b"[3]\n", json.dumps(odd).encode() + b"\n"]
    (run / "events.jsonl").write_bytes(b"".join(lines))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"train/step": 9, "val/loss_mlm": "x", "perf/steps_per_s": []}\n[]\n3\n')
    (run / "config.yaml").write_text("steps: many\ntrack: [1]\n")
    (run / "provenance.json").write_bytes(b"")
    found = status(run)
    assert (found.state, len(found.attempts)) == (whole.state, len(whole.attempts))
    assert [m for m in caplog.messages if "events.jsonl" in m and "(line 2, 3, 4)" in m]
    assert render(found) and as_json(found)


def test_the_last_words_of_a_rank_that_was_ended_from_outside_are_the_reason(run):
    last = status(run).attempts[-1].number
    folder = run / "attempts" / f"{last + 1:04d}.ended"
    folder.mkdir(parents=True)
    append_line(run / "events.jsonl", {"event": "attempt", "attempt": last + 1, "time": now()})
    (folder / hang_report(1)).write_text("a call kept the interpreter to itself for 45 s\n")
    found = status(run)
    assert "rank 1 hung" in found.why and "kept the interpreter" in found.why


def test_a_folder_where_nothing_began_yet_says_so(tmp_path):
    (tmp_path / "logs").mkdir()
    found = status(tmp_path)
    assert (found.state, found.step, found.steps, found.save) == ("not started", 0, None, None)
    assert line(found) == f"{tmp_path}: not started: no attempt has begun"
    assert render(found)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"),
     (7260, "2 h 1 min"), (90_000, "1 d 1 h"), (86_400 * 3, "3 d 0 h")],
)  # fmt: skip
def test_durations_are_said_in_two_units(seconds, text):
    assert duration(seconds) == text


def watch(run, *words, stdout=subprocess.PIPE):
    command = [sys.executable, "-m", "fitb", "status", str(run), "--watch", "--every_s", "0.1"]
    return subprocess.Popen([*command, *words], stdout=stdout, text=True)


@pytest.mark.parametrize(
    ("words", "running", "finished"),
    [
        ((), "running at step 400", "finished at step 1,000 of 1,000 (100.0%): all steps done"),
        (("--json",), '"state": "running"', '"state": "finished"'),
    ],
)
def test_watching_waits_for_a_run_prints_lines_and_ends_with_it(run, words, running, finished):
    later = run.with_name("later")
    with watch(later, *words) as process:
        assert process.stdout
        assert not select.select([process.stdout], [], [], 1)[0]  # nothing to tell of yet
        run.rename(later)
        for _ in range(2):
            assert running in process.stdout.readline()
        append_line(
            later / "events.jsonl",
            event("stop", attempt=2, step=1000, exit_code=0, reason="all steps done"),
        )
        rest = process.communicate(timeout=30)[0].splitlines()
    assert process.returncode == 0
    assert finished in rest[-1]


def test_watching_on_a_terminal_draws_the_page_in_place(run):
    reader, terminal = pty.openpty()
    with watch(run, stdout=terminal) as process:
        os.close(terminal)
        seen = b""
        while seen.count(b"\033[H\033[J") < 2:
            assert select.select([reader], [], [], 30)[0]
            seen += os.read(reader, 65_536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
            while os.read(reader, 65_536):  # what is written and not read keeps the writer
                pass
    os.close(reader)
    assert process.returncode == 0
    assert b"last save  step 350" in seen


def test_status_asks_slurm_where_it_is_and_says_what_it_heard(run, tmp_path, monkeypatch):
    text = (run / "events.jsonl").read_text().replace('"job": "x"', '"job": "71"')
    (run / "events.jsonl").write_text(text)
    executable(tmp_path / "scontrol", "echo JobId=$5 JobState=FAILED Reason=None", shell="/bin/sh")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = status(run, job_state=reported_state)
    assert (found.state, found.slurm) == ("stopped", "FAILED")
    assert "Slurm      job 71: FAILED" in render(found)
    executable(tmp_path / "scontrol", "exit 1", shell="/bin/sh")
    found = status(run, job_state=reported_state)
    assert (found.state, found.slurm) == ("running", None)
