"""events.jsonl of this version, of others, and of attempts that overlap."""

from __future__ import annotations

import random

from fitb.rundir.events import save_seconds
from fitb.rundir.history import attempts_of

T = "2026-11-24T20:58:{:02d}.000+00:00"


def event(second, name, **more):
    return {"time": T.format(second), "event": name, **more}


PREEMPTED = [
    event(0, "attempt", attempt=1, world_size=4, hosts=["a", "b"], job="7", restart=0, age_s=3.0),
    event(4, "first_step", attempt=1, step=1, age_s=4.5),
    event(5, "save", attempt=1, step=50, seconds={"write": 0.5, "verify": 0.25}),
    event(9, "save", attempt=1, step=81),
    event(9, "stop", attempt=1, reason="SIGTERM", exit_code=85, step=81),
    event(11, "requeue", step=81, exit_code=85, stalled=0, job="7", reason="as asked"),
    event(20, "attempt", attempt=2, world_size=2, hosts=["c"], job="7", restart=1, age_s=3.0),
    event(24, "resume", attempt=2, step=81, age_s=5.0),
    event(25, "first_step", attempt=2, step=82, age_s=5.5),
    event(30, "hang", attempt=2, rank=1, step=90, reason="rank 1 made no step for 61 s"),
    event(33, "requeue", step=81, exit_code=137, stalled=1, job="7", reason="crashed"),
]


def test_attempts_hold_what_their_events_say():
    first, second = attempts_of(PREEMPTED)
    assert (first.first_step, first.last_step, first.exit_code) == (0, 81, 85)
    assert (first.reason, first.decision, first.decided) == ("SIGTERM", "requeue", "as asked")
    assert (first.world_size, first.hosts, first.job, first.restart) == (4, ["a", "b"], "7", 0)
    assert first.start_s == {"imports": 3.0, "models": 0.0, "first step": 1.5}
    assert second.start_s == {"imports": 3.0, "models": 2.0, "first step": 0.5}
    assert first.began and first.ended and first.decided_at
    assert (first.ended - first.began).total_seconds() == 9
    assert (first.decided_at - first.ended).total_seconds() == 2
    assert [save_seconds(save) for save in first.saves] == [0.75, None]
    assert (second.first_step, second.last_step, second.exit_code) == (81, 90, 137)
    assert (second.reason, second.decided) == (None, "crashed")
    assert second.notes == ["rank 1 at step 90 hung (rank 1 made no step for 61 s)"]


def test_words_of_an_attempt_that_was_replaced_stay_with_it():
    late = [
        event(40, "attempt", attempt=3),
        event(41, "lost_rank", attempt=3, rank=0, host="a", step=3),
        event(42, "save", attempt=2, step=95),
        event(44, "bad_host", host="b", checks=["no GPU", "slow disk"]),
    ]
    _, second, third = attempts_of([*PREEMPTED, *late])
    assert second.last_step == 95
    assert third.notes == [
        "rank 0 on a at step 3 was lost",
        "host b failed its checks: no GPU, slow disk",
    ]


def test_any_field_may_be_missing_and_any_event_unknown():
    """Each event loses each of its fields in turn, among events of a version to come."""
    rng = random.Random(3)
    notes = [event(50, name) for name in ("hang", "lost_rank", "bad_host", "to come")]
    whole = [*PREEMPTED, *notes]
    for _ in range(300):
        events = [{k: v for k, v in e.items() if rng.random() < 0.8} for e in whole]
        found = attempts_of(events)
        assert [a.number for a in found] == sorted({a.number for a in found})
    assert len(attempts_of(whole)) == 2


def test_attempts_that_never_opened_the_run_count_as_number_0():
    crash = {"exit_code": 127, "stalled": 1, "job": "7", "reason": "crashed with exit code 127"}
    stop = {**crash, "reason": "given up"}
    (found,) = attempts_of([event(1, "requeue", **crash), event(9, "stop", **stop)])
    assert (found.number, found.decision, found.exit_code) == (0, "stop", 127)
    assert found.decided == "crashed with exit code 127; given up"
    assert attempts_of([]) == []
