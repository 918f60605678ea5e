from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fitb.cluster.progress import (
    MAX_STALLED_CRASHES,
    MAX_STALLED_LEAVES,
    decide,
    decide_from,
    last_committed_step,
    main,
)
from fitb.errors import FINISHED, RESUME, STOP


def before(step: int, stalled: int, job: str = "7", event: str = "requeue") -> dict[str, Any]:
    return {"event": event, "step": step, "stalled": stalled, "job": job}


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
def test_decision(
    events: list[dict[str, Any]], exit_code: int, step: int, verdict: int, stalled: int
) -> None:
    decision = decide_from(events, exit_code=exit_code, step=step, job="7")
    assert (decision.exit_code, decision.stalled) == (verdict, stalled), decision.reason
    assert "\n" not in decision.reason


def committed(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints" / f"step-{step:07d}").mkdir(parents=True)


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    assert last_committed_step(tmp_path) == 0
    committed(tmp_path, 90)
    committed(tmp_path, 100)
    for name in ("step-0000200.tmp", "step-0000300.bad", "latest"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert last_committed_step(tmp_path) == 100


@pytest.mark.parametrize(("code", "limit"), [(1, MAX_STALLED_CRASHES), (85, MAX_STALLED_LEAVES)])
def test_attempts_without_progress_end_in_a_stop(tmp_path: Path, code: int, limit: int) -> None:
    run_dir = tmp_path / "run"  # a crash may come before the folder
    verdicts = [decide(run_dir, code, job="7").exit_code for _ in range(limit)]
    assert verdicts == [RESUME] * (limit - 1) + [STOP]
    lines = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["requeue"] * (limit - 1) + ["stop"]
    assert {"time", "event", "step", "exit_code", "stalled", "job", "reason"} == lines[0].keys()


def test_crash_with_progress_is_requeued_without_end(tmp_path: Path) -> None:
    for attempt in range(1, 8):
        committed(tmp_path, 10 * attempt)
        assert decide(tmp_path, 1, job="7").exit_code == RESUME


def test_line_torn_by_a_kill_does_not_hinder_the_decision(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event": "attempt"}\n{"event": "sa')
    assert decide(tmp_path, 85).exit_code == RESUME
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["attempt", "requeue"]


def test_finished_run_leaves_no_event(tmp_path: Path) -> None:
    assert decide(tmp_path, 0).exit_code == FINISHED
    assert not (tmp_path / "events.jsonl").exists()


def test_command_exits_with_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert main([str(tmp_path), "85"]) == 85
    assert "left as asked" in capsys.readouterr().out
    assert main([str(tmp_path), "93"]) == 93
    assert main([str(tmp_path), "0"]) == 0
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path), "-1"]) == 2
