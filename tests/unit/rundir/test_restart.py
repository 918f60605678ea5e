"""What follows the end of an attempt, and when a run is over."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from fitb.base.errors import FINISHED, RESUME, STOP
from fitb.base.fsio import append_line, read_json, write_json
from fitb.rundir.events import num_attempts
from fitb.rundir.ownership import Owner, current_owner
from fitb.rundir.restart import (
    AGAIN,
    MAX_STALLED_CRASHES,
    MAX_STALLED_LEAVES,
    Source,
    already_over,
    begin_afresh,
    decide,
    decide_from,
    main,
)


def before(step, stalled, job="7", event="requeue"):
    return {"event": event, "step": step, "stalled": stalled, "job": job}


@pytest.mark.parametrize("damage", [b"", bytes(30), b'{"exit', b"\xff", b"[0]", b'{"step": 3}'])
def test_a_damaged_end_is_no_end_and_the_run_is_started(tmp_path, caplog, damage):
    (tmp_path / "done.json").write_bytes(damage)
    assert already_over(tmp_path, source=Source("7"), steps=3) is None
    assert any("done.json is damaged" in message for message in caplog.messages)
    for name, more in (("attempt", {}), ("stop", {"exit_code": FINISHED})):
        append_line(tmp_path / "events.jsonl", {"event": name, "attempt": 1, **more})
    assert decide(tmp_path, FINISHED, source=Source("7")).exit_code == FINISHED
    assert already_over(tmp_path, source=Source("7"), steps=0)


@pytest.mark.parametrize("damage", [b"", bytes(30), b"{", b"\xff", b"[0]", b"{}", b'{"job": []}'])
def test_what_is_damaged_of_a_run_is_passed_over_in_a_decision(tmp_path, damage):
    folder = tmp_path / "attempts" / "0001"
    folder.mkdir(parents=True)
    (folder / "owner.json").write_bytes(damage)
    events = tmp_path / "events.jsonl"
    for line in ({"event": "attempt", "attempt": 1, "job": "7"}, before(0, 2)):
        append_line(events, line)
    with open(events, "ab") as file:
        file.write(damage + b'\n{"event": "requeue", "stalled": "x", "step": null}\n{"event": "sa')
    assert num_attempts(tmp_path) == 1
    assert decide(tmp_path, STOP, source=Source("7"), seen=1).exit_code == STOP
    assert json.loads(events.read_bytes().splitlines()[-1])["event"] == "stop"
    assert "a row" in decide(tmp_path, 1, source=Source("7"), seen=1).reason


NOISE = [{"event": "save", "step": 500}, {"event": "stop", "step": 500, "exit_code": 85}]


@pytest.mark.parametrize(
    ("events", "exit_code", "step", "verdict", "stalled"),
    [
        pytest.param([], 0, 90, FINISHED, 0, id="finished"),
        pytest.param([], 93, 90, STOP, 0, id="the job itself says stop"),
        pytest.param([], 85, 10, RESUME, 0, id="first leave with a checkpoint"),
        pytest.param([], 85, 0, RESUME, 1, id="first leave without one"),
        pytest.param([], 1, 10, RESUME, 0, id="first crash after a checkpoint"),
        pytest.param([], 1, 0, RESUME, 1, id="first crash before a checkpoint"),
        pytest.param([before(10, 0)], 1, 20, RESUME, 0, id="crash that got further"),
        pytest.param([before(10, 2)], 137, 11, RESUME, 0, id="progress clears the count"),
        pytest.param([before(10, 0)], 1, 10, RESUME, 1, id="crash at the same step"),
        pytest.param([before(10, 1)], 1, 10, RESUME, 2, id="second time"),
        pytest.param([before(10, 2)], 1, 10, STOP, 3, id="third time"),
        pytest.param([before(10, 2)], 1, 5, STOP, 3, id="a step given up is no progress"),
        pytest.param([before(10, 2)], 85, 10, RESUME, 3, id="a preemption is no crash"),
        pytest.param([before(10, 2)], 143, 10, RESUME, 3, id="signal before it was caught"),
        pytest.param([before(10, 9)], 85, 10, STOP, 10, id="ten starts for nothing"),
        pytest.param([before(10, 2, "6")], 1, 10, RESUME, 1, id="new submission, new count"),
        pytest.param([before(10, 3, "7", "stop")], 1, 10, RESUME, 1, id="requeued by hand"),
        pytest.param([before(10, 2), *NOISE], 1, 10, STOP, 3, id="other events do not count"),
    ],
)
def test_decision(events, exit_code, step, verdict, stalled):
    decision = decide_from(events, exit_code=exit_code, step=step, source=Source("7"))
    assert (decision.exit_code, decision.stalled) == (verdict, stalled), decision.reason
    assert "\n" not in decision.reason


FIRST_STEP = {"event": "first_step", "age_s": 30.0}


@pytest.mark.parametrize(
    ("events", "exit_code", "step", "room_s", "verdict"),
    [
        pytest.param([FIRST_STEP], 1, 10, 91, AGAIN, id="a crash that got further"),
        pytest.param([FIRST_STEP], 1, 10, 90, RESUME, id="no time for another start"),
        pytest.param([], 1, 10, 119, RESUME, id="no time for a start that was never timed"),
        pytest.param([], 137, 10, 121, AGAIN, id="a rank that was killed"),
        pytest.param([], 85, 10, 9999, RESUME, id="a shutdown was asked for"),
        pytest.param([], 143, 10, 9999, RESUME, id="a signal of Slurm"),
        pytest.param([], 93, 10, 9999, STOP, id="a stop"),
        pytest.param([], 0, 10, 9999, FINISHED, id="the end"),
        pytest.param([before(10, 0)], 1, 10, 9999, AGAIN, id="the first one without progress"),
        pytest.param([before(10, 1, event="restart")], 1, 10, 9999, RESUME, id="the second"),
        pytest.param([before(10, 2)], 1, 10, 9999, STOP, id="the third"),
        pytest.param([before(10, 2, event="restart")], 1, 11, 9999, AGAIN, id="progress again"),
    ],
)
def test_crash_starts_the_tasks_again_in_the_allocation(events, exit_code, step, room_s, verdict):
    source = Source("7")
    decision = decide_from(events, exit_code=exit_code, step=step, source=source, room_s=room_s)
    assert decision.exit_code == verdict, decision.reason


def test_start_again_in_the_allocation_is_recorded_and_needs_an_attempt_that_began(tmp_path):
    assert decide(tmp_path, 1, source=Source("7"), room_s=9999).exit_code == RESUME
    append_line(tmp_path / "events.jsonl", attempt(1, job="7", restart=0, start=0))
    committed(tmp_path, 10)
    assert decide(tmp_path, 1, source=Source("7"), room_s=9999).exit_code == AGAIN
    lines = [json.loads(line) for line in events_of(tmp_path).splitlines()]
    assert [line["event"] for line in lines] == ["requeue", "attempt", "restart"]
    assert not (tmp_path / "done.json").exists()
    # The decision of an earlier start comes late: a later start has the run.
    append_line(tmp_path / "events.jsonl", attempt(2, job="7", restart=0, start=1))
    assert decide(tmp_path, 1, source=Source("7", 0), room_s=9999).exit_code == STOP
    assert decide(tmp_path, 1, source=Source("7", 0, start=1), seen=1).exit_code == RESUME


def committed(run_dir, step):
    (run_dir / "checkpoints" / f"step-{step:07d}").mkdir(parents=True)


@pytest.mark.parametrize(("code", "limit"), [(1, MAX_STALLED_CRASHES), (85, MAX_STALLED_LEAVES)])
def test_attempts_without_progress_end_in_a_stop(tmp_path, code, limit):
    run_dir = tmp_path / "run"  # a crash may come before the folder
    verdicts = [decide(run_dir, code, source=Source("7")).exit_code for _ in range(limit)]
    assert verdicts == [RESUME] * (limit - 1) + [STOP]
    lines = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["requeue"] * (limit - 1) + ["stop"]
    assert {"time", "event", "step", "exit_code", "stalled", "job", "reason"} == lines[0].keys()


def ended(run_dir, *codes):
    """Attempts that wrote their exit code down themselves."""
    for code in codes:
        append_line(run_dir / "events.jsonl", {"event": "attempt"})
        append_line(run_dir / "events.jsonl", {"event": "stop", "exit_code": code})


@pytest.mark.parametrize(
    ("tasks", "own", "verdict", "stalled"),
    [
        pytest.param(0, 0, FINISHED, 0, id="both say finished"),
        pytest.param(0, 85, RESUME, 1, id="a wrapper swallowed the code of a shutdown"),
        pytest.param(0, 93, STOP, 0, id="a wrapper swallowed a stop"),
        pytest.param(0, 1, RESUME, 1, id="a wrapper swallowed a crash"),
        pytest.param(0, None, RESUME, 1, id="no record of its end"),
        pytest.param(1, 0, FINISHED, 0, id="a wrapper crashed after the end"),
        pytest.param(143, 0, FINISHED, 0, id="preempted after the end"),
        pytest.param(85, None, RESUME, 1, id="a shutdown"),
        pytest.param(93, None, STOP, 0, id="a stop"),
        pytest.param(137, 85, RESUME, 1, id="a rank was killed after the save"),
        pytest.param(0, "none", RESUME, 1, id="a launch that started nothing"),
        pytest.param(85, "none", RESUME, 1, id="a shutdown before an attempt began"),
        pytest.param(143, "none", RESUME, 1, id="a signal before an attempt began"),
        pytest.param(93, "none", STOP, 0, id="refused before an attempt began"),
    ],
)
def test_success_is_what_the_attempt_wrote_down_itself(tmp_path, tasks, own, verdict, stalled):
    ended(tmp_path, 85)
    lines = [attempt(2)] if own != "none" else []
    lines += [{"event": "stop", "attempt": 2, "exit_code": own}] if isinstance(own, int) else []
    # A late word of an attempt that was replaced, and a decision, are no end of this one.
    lines += [{"event": "stop", "attempt": 1, "exit_code": 0}]
    lines += [{"event": "stop", "stalled": 3, "exit_code": 0, "step": 0}]
    for line in lines:
        append_line(tmp_path / "events.jsonl", line)
    before = events_of(tmp_path)
    decision = decide(tmp_path, tasks, source=Source("8"), seen=1)
    assert (decision.exit_code, decision.stalled) == (verdict, stalled), decision.reason
    assert (tmp_path / "done.json").exists() == (verdict != RESUME)
    assert (events_of(tmp_path) == before) == (verdict == FINISHED)


def test_finish_that_a_failed_launch_was_once_taken_for_ends_no_chain(tmp_path):
    append_line(tmp_path / "events.jsonl", {"event": "attempt", "attempt": 1})
    done = {"exit_code": 0, "reason": "finished", "step": 0, "job": "14", "chain": "mine"}
    write_json(tmp_path / "done.json", done)
    assert already_over(tmp_path, source=link("15"), steps=90) is None
    append_line(tmp_path / "events.jsonl", {"event": "stop", "attempt": 1, "exit_code": 0})
    over = already_over(tmp_path, source=link("15"), steps=90)  # it stopped early
    assert over is not None and over.exit_code == FINISHED


def test_command_exits_with_its_verdict(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert main([str(tmp_path), "85"]) == 85
    assert "shut down as requested" in capsys.readouterr().out
    assert main([str(tmp_path), "93"]) == 93
    assert main([str(tmp_path), "0"]) == 85
    ended(tmp_path, 85, 0)
    capsys.readouterr()
    committed(tmp_path, 90)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "2\n"
    assert main([str(tmp_path), "0", "2"]) == 85  # attempts before a start are no evidence for it
    assert read_json(tmp_path / "done.json")["exit_code"] == 93
    assert main([str(tmp_path), "0", "1"]) == 0
    ended(tmp_path, 1)
    committed(tmp_path, 91)
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    assert main([str(tmp_path), "1", "2", "9999"]) == AGAIN and waited == []
    assert main([str(tmp_path), "1", "2", "9999"]) == AGAIN and waited == [10.0]
    assert main([str(tmp_path), "1", "2", "9999"]) == RESUME and waited == [10.0]
    assert main([]) == 2
    assert main([str(tmp_path), "-1"]) == 2


def link(job, chain="mine"):
    return Source(job, 0, chain)


def events_of(run_dir):
    return (run_dir / "events.jsonl").read_text()


def test_end_of_a_run_is_written_down_whole(tmp_path):
    committed(tmp_path, 90)
    decide(tmp_path, 85, source=link("7"))
    assert not (tmp_path / "done.json").exists()
    decide(tmp_path, 93, source=link("8"))
    done = read_json(tmp_path / "done.json")
    assert done.pop("time").endswith("+00:00")
    reason = "the job said that starting it again would not help"
    expected = {"exit_code": 93, "reason": reason, "step": 90, "job": "8", "chain": "mine"}
    assert done == expected


def test_finished_run_is_over_for_its_job_its_chain_and_whoever_wants_no_more_steps(tmp_path):
    assert already_over(tmp_path, source=Source("7"), steps=90) is None
    committed(tmp_path, 90)
    ended(tmp_path, 0)
    decide(tmp_path, 0, source=link("7"))
    for source, steps in ((link("8"), 100), (Source("9"), 90), (link("9", "other"), 80)):
        over = already_over(tmp_path, source=source, steps=steps)
        assert over is not None and over.exit_code == FINISHED
        assert "finished at step 90 (job 7)" in over.reason
    assert already_over(tmp_path, source=Source("9"), steps=100) is None
    begin_afresh(tmp_path)
    assert already_over(tmp_path, source=link("8"), steps=90) is None
    begin_afresh(tmp_path)  # there was nothing to forget


def test_stop_ends_its_chain_and_no_other_submission(tmp_path):
    decide(tmp_path, 93, source=link("7"))
    over = already_over(tmp_path, source=link("8"), steps=90)
    assert over is not None and over.exit_code == STOP
    assert "this ends chain mine" in over.reason
    assert already_over(tmp_path, source=link("9", "other"), steps=90) is None
    assert already_over(tmp_path, source=Source("9"), steps=90) is None
    decide(tmp_path, 93, source=Source("7"))
    assert already_over(tmp_path, source=Source("7", 1), steps=90) is None  # requeued by hand


def attempt(number, **source):
    return {"event": "attempt", "attempt": number, **source}


@pytest.mark.parametrize("exit_code", [0, 1, 85, 93, 143])
@pytest.mark.parametrize(
    ("later", "message"),
    [
        ([attempt(2, job="7", restart=2)], "replaced by attempt 2 of job 7"),
        ([attempt(2, job="8", restart=0)], "replaced by attempt 2 of job 8"),
        ([attempt(2, job="7", restart=1), attempt(3, job="9", restart=0)], "attempt 3 of job 9"),
    ],
)
def test_attempt_that_lost_its_run_writes_nothing_into_it(tmp_path, exit_code, later, message):
    for record in [attempt(1, job="7", restart=1), *later]:
        append_line(tmp_path / "events.jsonl", record)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"event": "sav')  # the new owner is in the middle of a line
    before = events_of(tmp_path)
    decision = decide(tmp_path, exit_code, source=Source("7", 1), seen=0)
    assert decision.exit_code == STOP
    assert message in decision.reason
    assert events_of(tmp_path) == before
    assert not (tmp_path / "done.json").exists()


@pytest.mark.parametrize(
    ("records", "seen"),
    [
        pytest.param([attempt(1, job="6", restart=0)], 1, id="another job's, before this one"),
        pytest.param([attempt(1, job="7", restart=0), attempt(2, job="7", restart=1)], 1, id="own"),
        pytest.param([attempt(1, job="7", restart=0)], 0, id="an earlier start of this job"),
        pytest.param([attempt(1), attempt(2)], 0, id="attempts that name no job"),
        pytest.param([attempt(1, job="")], 0, id="an attempt without a scheduler"),
        pytest.param([attempt(1, job=None, restart=None)], 0, id="nulls"),
        pytest.param([], 0, id="no attempt at all"),
    ],
)
def test_attempt_that_has_its_run_decides(tmp_path, records, seen):
    for record in records:
        append_line(tmp_path / "events.jsonl", record)
    assert num_attempts(tmp_path) == len(records)
    assert decide(tmp_path, 85, source=Source("7", 1), seen=seen).exit_code == RESUME


def owner(run_dir, name, job):
    record = asdict(Owner(int(name[:4]), job, 0, "h1", "", 3, 0.0, ""))
    (run_dir / "attempts" / name).mkdir(parents=True)
    write_json(run_dir / "attempts" / name / "owner.json", record)


def test_second_job_on_a_run_that_is_alive_leaves_no_stop_in_it_until_that_has_ended(tmp_path):
    """One that was refused after it had its number, say, owns nothing."""
    append_line(tmp_path / "events.jsonl", attempt(2, job="6", restart=0))
    for name, job in (("0001.ended", "5"), ("0002", "6"), ("0003", "7")):
        owner(tmp_path, name, job)
    (tmp_path / "attempts" / "0003" / "ended").touch()
    before = events_of(tmp_path)
    decision = decide(tmp_path, 93, source=Source("7"), seen=1)
    assert decision.exit_code == STOP
    assert "attempt 2 of job 6" in decision.reason
    assert events_of(tmp_path) == before
    assert not (tmp_path / "done.json").exists()
    (tmp_path / "attempts" / "0002" / "ended").touch()
    assert current_owner(tmp_path) is None
    assert decide(tmp_path, 93, source=Source("7"), seen=1).exit_code == STOP
    assert read_json(tmp_path / "done.json")["job"] == "7"
