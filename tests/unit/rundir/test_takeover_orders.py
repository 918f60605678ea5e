"""Several jobs start one run: the short form of takeover_orders.py and takeover_rounds.py."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import takeover_orders
from executable import ran
from stopped_calls import Gate
from takeover_orders import Broken, Contest, every_order, killed_at_every_call, random_order

from fitb.rundir import names, ownership


@pytest.fixture
def few():
    """Stopping where another starter can see the call."""
    with Gate(ownership).installed() as gate:
        yield gate


@pytest.fixture
def every():
    """Stopping at every call."""
    with Gate(ownership, every_call=True).installed() as gate:
        yield gate


@pytest.mark.parametrize("scenario", takeover_orders.SCENARIOS)
def test_in_every_order_of_the_calls_of_two_starters_one_owns_the_run(few, scenario):
    orders, calls = every_order(lambda: Contest(few, scenario, 2, seen=True))
    assert calls > orders >= 10


def test_in_every_order_no_two_own_a_run_that_each_believes_the_other_has_left(few):
    """After an orderly end, which leaves nothing to ask about but the other starter."""
    orders, calls = every_order(lambda: Contest(few, "ended", 2, seen=False))
    assert calls > orders >= 50


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("scenario", takeover_orders.SCENARIOS)
def test_in_random_orders_with_and_without_kills_nobody_owns_a_run_beside_another(
    every, scenario, seen
):
    rng = random.Random(f"{scenario} {seen}")
    for i in range(60):
        random_order(Contest(every, scenario, 3, seen), rng, kill=bool(i % 2))


@pytest.mark.parametrize("scenario", takeover_orders.SCENARIOS)
def test_after_a_kill_at_any_call_the_next_starter_owns_the_run(every, scenario):
    assert killed_at_every_call(lambda: Contest(every, scenario, 2, seen=True)) >= 20


@pytest.mark.parametrize("part", ["token", "fence"])
def test_the_search_of_orders_finds_a_take_over_that_leaves_something_behind(
    few, monkeypatch, part
):
    """Without the removal of either, an attempt that was shut out commits."""
    if part == "token":
        monkeypatch.setattr(
            ownership, "_revoke", lambda run, n, s: ownership._remove(names.fence(run, n), s)
        )
    else:
        monkeypatch.setattr(ownership, "_remove", lambda fence, s: None)
    with pytest.raises(Broken, match="two fences"):
        every_order(lambda: Contest(few, "fresh", 2, seen=False))


def test_of_real_processes_that_start_a_run_at_once_one_owns_it():
    program = Path(takeover_orders.__file__).with_name("takeover_rounds.py")
    done = ran(sys.executable, program, "--rounds", "60")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["starters"] for line in found] == [2, 4]
    for line in found:
        assert (line["1 owners"], line["failed"], line["other fences"]) == (60, 0, 0), line
