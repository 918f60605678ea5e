"""Which rank the others wait for, and when its host is named."""

from types import SimpleNamespace

import pytest

from fitb.base.world import World
from fitb.training import slowest
from fitb.training.slowest import Slowest


@pytest.fixture
def watching(monkeypatch):
    """Three ranks on hosts a, b, c; what was named."""
    monkeypatch.setattr(slowest, "on_all", lambda action, world: ["a", "b", "c"])
    named = []
    run = SimpleNamespace(event=lambda name, **about: named.append((name, about)))
    return Slowest(run, World(0, 3)), named


def test_a_rank_that_is_slow_for_long_is_named_once_with_its_host(watching):
    comparing, named = watching
    for _ in range(3):
        found = comparing.compare([4.0, 5.0, 4.2], steps=10, interval_s=15.0)
        assert found == {"perf/slowest_rank_ms": pytest.approx(90.0), "perf/slowest_rank": 1.0}
    ((event, about),) = named
    assert (event, about["host"], about["rank"], about["percent"]) == ("slow_host", "b", 1, 22)
    assert about["seconds"] == 30.0
    for _ in range(40):
        comparing.compare([4.0, 5.0, 4.2], steps=10, interval_s=15.0)
    assert len(named) == 2  # again after ten minutes


@pytest.mark.parametrize(
    "turns",
    [
        [[4.0, 4.3, 4.0]],  # within what chance does
        [[4.0, 5.0, 4.0], [4.0, 4.0, 4.0]],
        [[4.0, 5.0, 4.0], [5.0, 4.0, 4.0]],
        [[5.0, 5.0, 4.0], [4.0, 5.0, 5.0]],  # half of them are as slow
    ],
)
def test_ranks_that_are_slow_by_turns_or_hardly_are_not_named(watching, turns):
    comparing, named = watching
    for _ in range(50):
        for work_s in turns:
            comparing.compare(work_s, steps=10, interval_s=15.0)
    assert named == []


def test_one_interval_however_long_names_nobody(watching):
    comparing, named = watching
    comparing.compare([4.0, 9.0, 4.0], steps=10, interval_s=900.0)
    assert named == []


def test_one_rank_is_compared_with_nobody(monkeypatch):
    monkeypatch.setattr(slowest, "on_all", lambda action, world: ["a"])
    assert Slowest(SimpleNamespace(), World()).compare([4.0], 10, 15.0) == {}
