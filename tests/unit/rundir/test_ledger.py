"""Where the time of a run went: every second of every rank once, between submission and end."""

from __future__ import annotations

import datetime
import json
import random
import time

import pytest

from fitb.base.fsio import append_line
from fitb.rundir.clock import KINDS as OF_A_RANK
from fitb.rundir.clock import Clock
from fitb.rundir.ledger import KINDS, Beat, ledger, put_together, steps_done
from fitb.rundir.names import STEP
from fitb.rundir.restart import Source, decide

T0 = 1_700_000_000.0


class Story:
    """A run folder in which a story is written down, in seconds after T0."""

    def __init__(self, run, ranks=2):
        self.run, self.ranks, self.number = run, ranks, 0

    def event(self, at_s, name, **more):
        moment = datetime.datetime.fromtimestamp(T0 + at_s, datetime.timezone.utc).isoformat()
        append_line(self.run / "events.jsonl", {"time": moment, "event": name, **more})

    def attempt(self, at_s, job="7", restart=0, slurm=(), **more):
        """Begin an attempt; `slurm` is when the job was submitted, eligible and begun."""
        self.number += 1
        times = {
            n: T0 + t for n, t in zip(("submitted", "eligible", "began"), slurm, strict=bool(slurm))
        }
        about = {"attempt": self.number, "job": job, "restart": restart, **times, **more}
        self.event(at_s, "attempt", world_size=self.ranks, **about)

    def beat(self, rank, at_s, **seconds):
        """What a rank has left of its seconds."""
        folder = self.run / "attempts" / f"{self.number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        record = {"time": T0 + at_s, "step": 3, "seconds": dict.fromkeys(OF_A_RANK, 0.0) | seconds}
        (folder / f"rank-{rank:05d}.json").write_text(json.dumps(record))

    def beats(self, at_s, **seconds):
        for rank in range(self.ranks):
            self.beat(rank, at_s, **seconds)


def test_every_second_from_submission_to_the_end_has_its_kind(tmp_path):
    story = Story(tmp_path)
    # 10 s in the queue; the process begins 2 s after the job, and its first step ends 8 s later.
    story.attempt(1015, slurm=(1000, 1000, 1010))
    story.beat(0, 1052, start=8, training=30, save=2)
    story.beat(1, 1050, start=6, training=30, save=2)  # its process began as late
    # Killed. Tasks start again in the allocation 8 and 10 s later; 3 s of steps are repeated.
    story.event(1055, "restart", stalled=0, exit_code=137, job="7")
    story.attempt(1063, start=1)
    story.beats(
        1100, start=10, repeated=3, training=20, save=1, validation=4, export=1, data_wait=1
    )
    story.event(1102, "requeue", stalled=0, exit_code=85, job="7")
    # Requeued 1 s after the decision: 120 s of hold, 5 s in the queue.
    story.attempt(1235, restart=1, slurm=(1103, 1223, 1228))
    story.beats(1290, start=12, training=48)
    story.event(1295, "stop", stalled=0, exit_code=0, job="7")
    found = ledger(tmp_path)
    assert found is not None
    expected = {
        "queue": 2 * (10 + 5),
        "hold": 2 * 120,
        "start": (2 + 8) + (2 + 6) + 2 * 10 + 2 * (2 + 12),
        "training": 2 * (30 + 20 + 48),
        "repeated": 2 * 3,
        "save": 2 * (2 + 1),
        "validation": 2 * 4,
        "export": 2,
        "data_wait": 2,
        "idle": 8 + 10 + 2 * 3 + 2 * 5,
    }
    assert found.seconds == pytest.approx(expected)
    assert found.wall_s == pytest.approx(2 * 295) and found.unaccounted_s == pytest.approx(0)
    assert found.ettr == pytest.approx(98 / 295)
    assert found.goodput == pytest.approx(98 / (295 - 135))
    assert found.record()["rank_hours"] == pytest.approx(2 * 160 / 3600, abs=1e-3)


def test_kinds_sum_to_the_time_from_submission_to_the_end_whatever_happens(tmp_path):
    for seed in range(50):
        run, now = tmp_path / str(seed), 0.0
        run.mkdir()
        chance, story = random.Random(seed), Story(run, ranks=1 + seed % 3)

        def later(most=20.0, chance=chance):
            nonlocal now
            now += chance.uniform(0.1, most)
            return now

        began = None
        for restart in range(chance.randint(1, 4)):
            slurm = (now if restart else later(), later(), later())
            began = slurm[0] if began is None else began
            for start in range(chance.randint(1, 3)):
                story.attempt(later(), restart=restart, start=start, slurm=slurm)
                each = {kind: chance.uniform(0, 9) for kind in OF_A_RANK}
                now += sum(each.values())
                for rank in range(story.ranks):
                    story.beat(rank, now - chance.uniform(0, 0.05), **each)
                story.event(later(), "requeue", stalled=0, job="7")
        found = ledger(run)
        assert found is not None
        assert found.wall_s == pytest.approx(story.ranks * (now - began))
        assert sum(found.seconds.values()) == pytest.approx(found.wall_s)
        assert min(found.seconds.values()) >= 0 and found.seconds.keys() == set(KINDS)


def test_time_of_a_job_that_waits_for_another_one_is_counted_once(tmp_path):
    story = Story(tmp_path, ranks=1)
    story.attempt(20, job="7", slurm=(0, 0, 10))
    story.beats(50, start=10, training=30)
    story.event(52, "requeue", stalled=0, job="7")
    story.attempt(80, job="8", slurm=(0, 60, 70))  # a chain: submitted with the first
    story.beats(100, training=30)
    story.event(101, "stop", stalled=0, job="8")
    story.attempt(520, job="9", slurm=(500, 500, 510))  # submitted long after the end
    story.beats(540, training=30)
    found = ledger(tmp_path)
    assert found is not None
    assert found.wall_s == pytest.approx(101 + 40)
    assert found.seconds["queue"] == pytest.approx(10 + (70 - 52) + 10)
    assert found.unaccounted_s == pytest.approx(0)


def test_what_is_not_known_is_unaccounted_and_not_spread(tmp_path):
    assert ledger(tmp_path) is None
    story = Story(tmp_path, ranks=1)
    story.attempt(5, slurm=(0, 0, 4))
    folder = tmp_path / "attempts" / "0001"
    folder.mkdir(parents=True)
    (folder / "rank-00000.json").write_text('{"time": 1, "step": 3}')  # of an earlier version
    assert ledger(tmp_path) is None
    story.attempt(100, restart=1, slurm=(60, 61, 90))
    for damage in ("", "[]", '{"time": NaN, "seconds": {}}', '{"time": 1, "seconds": [3]}'):
        (tmp_path / "attempts" / "0002").mkdir(exist_ok=True)
        (tmp_path / "attempts" / "0002" / "rank-00000.json").write_text(damage)
        assert ledger(tmp_path) is None
    story.beats(130, start=10, training=30)
    found = ledger(tmp_path)
    assert found is not None
    assert found.unaccounted_s == pytest.approx(60 - 4) and found.wall_s == pytest.approx(130)


def test_starts_of_a_job_in_which_no_attempt_began_are_idle_and_their_wait_is_a_hold(tmp_path):
    """Ten hours in the queue counted as an allocation in which nothing lived."""
    story = Story(tmp_path, ranks=1)
    story.attempt(5, slurm=(0, 0, 4))
    story.beats(50, start=10, training=35)
    story.event(50, "requeue", stalled=0, job="7")
    about = {"job": "7", "restart": 1, "began": T0 + 35_900}
    story.event(36_000, "requeue", stalled=1, **about)  # of another start, by the preflight
    story.attempt(36_210, restart=2, slurm=(36_002, 36_122, 36_200))
    story.beats(36_300, start=10, training=80)
    found = ledger(tmp_path)
    assert found is not None
    assert found.wall_s == pytest.approx(36_300) and found.unaccounted_s == pytest.approx(0)
    assert found.seconds["hold"] == pytest.approx(35_900 - 50 + 120)
    assert found.seconds["idle"] == pytest.approx(36_002 - 35_900)
    assert found.goodput == pytest.approx(115 / (50 - 4 + 102 + 100), rel=1e-3)
    later = tmp_path / "later"
    later.mkdir()
    story = Story(later, ranks=1)
    story.attempt(5, slurm=(0, 0, 0))
    story.beats(100, start=10, training=90)
    story.event(101, "requeue", stalled=0, job="7")
    assert decide(later, 93, source=Source("8"), seen=1).exit_code == 93  # years later
    told = json.loads((later / "done.json").read_text())["ledger"]
    assert told["rank_hours"] == pytest.approx(101 / 3600, abs=1e-3)


def test_clocks_that_differ_make_no_kind_negative(tmp_path):
    story = Story(tmp_path, ranks=1)
    story.attempt(5, slurm=(0, 0, 4))
    story.beat(0, 350, start=10, training=40)  # the clock of the host is 300 s ahead
    story.event(52, "requeue", stalled=0, job="7")
    story.attempt(20, job="8", slurm=(10, 10, 15))  # took over while the other was alive
    story.beats(100, start=10, training=70)
    found = ledger(tmp_path)
    assert found is not None
    assert min(found.seconds.values()) >= 0 and found.seconds["training"] == 110
    assert 0 <= found.ettr <= 1


def test_rank_that_has_left_nothing_is_unknown_and_not_idle(tmp_path):
    story = Story(tmp_path)
    story.attempt(5, slurm=(0, 0, 5))
    story.beat(0, 105, start=10, training=90)
    story.attempt(107, start=1)
    story.beats(205, start=10, training=88)
    story.event(205, "stop", stalled=0, exit_code=0, job="7")
    found = ledger(tmp_path)
    assert found is not None
    assert found.unknown_s == pytest.approx(102) == pytest.approx(found.unaccounted_s)
    assert found.goodput == pytest.approx((90 + 2 * 88) / (2 * 200 - 102))


def test_run_without_a_scheduler_begins_with_its_process(tmp_path):
    story = Story(tmp_path)
    story.attempt(7, job="")
    story.beats(100, start=10, training=90)
    story.attempt(507, job="")
    story.beats(600, start=10, repeated=5, training=85)
    found = ledger(tmp_path)
    assert found is not None
    assert found.wall_s == pytest.approx(2 * 200) and found.unaccounted_s == pytest.approx(0)
    later = ledger(
        tmp_path, T0 + 610, Beat(T0 + 610, {**dict.fromkeys(OF_A_RANK, 0.0), "training": 110})
    )
    assert later is not None and later.seconds["training"] == pytest.approx(2 * 200)


def test_end_of_a_run_tells_its_goodput(tmp_path):
    story = Story(tmp_path)
    now_s = time.time() - T0
    story.attempt(now_s - 90, slurm=(now_s - 100, now_s - 100, now_s - 90))
    story.event(now_s, "stop", attempt=1, exit_code=0)
    story.beats(now_s, start=10, training=80)
    assert decide(tmp_path, 0, source=Source("7")).exit_code == 0
    told = json.loads((tmp_path / "done.json").read_text())["ledger"]
    assert told["goodput"] == pytest.approx(80 / 90, abs=0.02)
    assert told["ettr"] == pytest.approx(0.8, abs=0.02)
    assert told["rank_seconds"]["queue"] == pytest.approx(20)


def test_clock_counts_every_moment_once_and_steps_of_earlier_attempts_as_repeated(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock(age_s=3.0, done=2)
    now += 4
    with clock.during("data_wait"):  # before the first step all but saves is a start
        now += 1
    clock.step_done(1)
    now += 5
    clock.step_done(2)
    now += 6
    with clock.during("save"):
        now += 7
        with clock.during("export"):
            now += 8
    with clock.during("data_wait"):
        now += 9
        now += 100
        clock.suspended(100)
    expected = {"start": 8, "repeated": 5, "training": 6, "save": 7, "export": 8, "data_wait": 9}
    assert clock.seconds() == {"validation": 0, "idle": 100, **expected}
    assert sum(clock.seconds().values()) == 3 + now


def test_heartbeats_of_earlier_attempts_are_put_together_and_tell_the_same(tmp_path):
    story = Story(tmp_path)
    story.attempt(1015, slurm=(1000, 1000, 1010))
    story.beats(1050, start=10, training=30)
    story.attempt(1063, start=1)
    story.beats(1100, start=10, training=20)
    before = ledger(tmp_path), steps_done(tmp_path)
    put_together(tmp_path, 2)
    together = tmp_path / "attempts" / "0001" / "heartbeats.json"
    assert together.exists() and not (tmp_path / "attempts" / "0002" / together.name).exists()
    for path in together.parent.glob("rank-*.json"):
        path.unlink()
    assert (ledger(tmp_path), steps_done(tmp_path)) == before
    written = together.read_bytes()
    put_together(tmp_path, 2)
    assert together.read_bytes() == written
    for damage in ("[", "[0]", '{"0": 3, "x": {}}'):
        together.write_text(damage)
        assert steps_done(tmp_path) == 3 and ledger(tmp_path)  # of the other attempt


def test_steps_done_are_those_logged_and_those_of_the_last_heartbeats(tmp_path):
    assert steps_done(tmp_path) == 0
    append_line(tmp_path / "metrics.jsonl", {STEP: 40})
    assert steps_done(tmp_path) == 40
    story = Story(tmp_path)
    story.number = 1
    story.beats(0)
    assert steps_done(tmp_path) == 40
    (tmp_path / "attempts" / "0001" / "rank-00000.json").write_text('{"step": 43}')
    assert steps_done(tmp_path) == 43
