from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fitb.cluster import preflight
from fitb.cluster.preflight import Verdict, barred, come_back, judge, pair_rounds
from fitb.fsio import append_line, read_json, read_lines
from fitb.rundir.restart import Source

NO_ONE = "the all-reduce over all hosts failed, and no host is to blame for it"


def record(clock_s: float | None = 0.0, failures: tuple[str, ...] = (), **pairs: bool) -> Any:
    """A host that reduced with all, or with those named only."""
    reduced = not pairs
    return {
        "failures": list(failures),
        "reduced": reduced,
        "pairs": pairs,
        "clock_s": clock_s if reduced else None,
    }


@pytest.mark.parametrize("num_hosts", [2, 3, 4, 5, 8, 31])
def test_every_host_meets_both_neighbours_and_one_at_a_time(num_hosts: int) -> None:
    rounds = pair_rounds(num_hosts)
    assert len(rounds) == (1 if num_hosts == 2 else 2 + num_hosts % 2)
    for pairs in rounds:
        met = [host for pair in pairs for host in pair]
        assert len(met) == len(set(met))
    every = {frozenset(pair) for pairs in rounds for pair in pairs}
    assert every == {frozenset((i, (i + 1) % num_hosts)) for i in range(num_hosts)}


def test_no_host_is_to_blame_for_what_its_own_name_leads_to() -> None:
    """Debian's 127.0.1.1: good hosts were barred, and the job went on to the next pair."""
    why = "a is 127.0.1.1 on a itself; export GLOO_SOCKET_IFNAME=eth0"
    misled = {**record(None), "reduced": False, "unreachable": why}
    assert judge(["a", "b"], {"a": misled, "b": misled}) == Verdict({}, why, passes=False)
    waiting = record(a=False)
    assert judge(["a", "b"], {"a": misled, "b": waiting}) == Verdict({}, why, passes=False)
    full = {**misled, "failures": ["disk /tmp: full"]}
    assert judge(["a", "b"], {"a": misled, "b": full}).bad == {"b": ["disk /tmp: full"]}


def test_a_host_alone_has_no_neighbours() -> None:
    assert pair_rounds(1) == []


def test_hosts_that_do_all_they_should_are_fit() -> None:
    assert judge(["a", "b", "c"], {host: record(100.0) for host in "abc"}) == Verdict({})


def test_a_host_that_never_answers_is_bad_and_its_neighbours_are_not() -> None:
    records = {"a": record(b=True, c=False), "b": record(a=True, c=False)}
    assert judge(["a", "b", "c"], records).bad == {"c": ["no answer before the deadline"]}
    assert list(judge(["a", "c"], {"a": record(c=False)}).bad) == ["c"]


def test_what_a_host_says_of_itself_is_all_kept() -> None:
    records = {"a": record(failures=("disk full", "no GPU")), "b": record()}
    assert judge(["a", "b"], records).bad == {"a": ["disk full", "no GPU"]}


def test_the_host_that_reaches_neither_neighbour_is_the_culprit() -> None:
    records = {
        "a": record(b=False, d=True),
        "b": record(a=False, c=False),
        "c": record(b=False, d=True),
        "d": record(a=True, c=True),
    }
    assert judge("abcd", records).bad == {"b": ["no reduction with a, c"]}


def test_a_pair_works_only_if_both_say_so() -> None:
    records = {
        "a": record(b=True, c=True),
        "b": record(a=False, c=False),
        "c": record(a=True, b=True),
    }
    assert list(judge("abc", records).bad) == ["b"]


def test_of_two_hosts_that_do_not_reach_each_other_none_is_cleared() -> None:
    assert list(judge("ab", {"a": record(b=False), "b": record(a=False)}).bad) == ["a", "b"]


def test_a_network_that_carries_no_pair_of_many_is_no_hosts_fault() -> None:
    records = {h: record(**{o: False for o in "abc" if o != h}) for h in "abc"}
    assert judge("abc", records) == Verdict({}, NO_ONE)
    records["a"]["failures"].append("disk full")
    assert judge("abc", records).bad == {"a": ["disk full"]}


def test_a_network_that_carries_pairs_and_not_all_together_is_no_hosts_fault() -> None:
    records = {h: record(**{o: True for o in "abc" if o != h}) for h in "abc"}
    assert judge("abc", records) == Verdict({}, NO_ONE)


def test_a_clock_is_held_against_the_median_of_all() -> None:
    records = {"a": record(100.0), "b": record(107.5), "c": record(100.2), "d": record(99.9)}
    assert judge("abcd", records).bad == {"b": ["its clock is +7.4 s off the median of the hosts"]}


def test_hosts_found_bad_stay_so_for_their_submission_alone() -> None:
    def found(host: str, **source: str) -> dict[str, Any]:
        return {"event": "bad_host", "host": host, "checks": [], **source}

    events = [
        found("a", job="7"),
        found("b", job="8"),
        found("c", job="7"),
        found("a", job="7"),
        found("d", job="9", chain="mine"),
        found("e", job="10", chain="mine"),
    ]
    assert barred(events, Source("7", 3)) == ["a", "c"]
    assert barred(events, Source("11", chain="mine")) == ["d", "e"]
    assert barred(events, Source("12")) == []


SLURM = """#!/usr/bin/env bash
case "${0##*/} $1" in
  "scontrol show") echo "JobId=7 JobState=RUNNING ExcNodeList=$EXCLUDED" ;;
  scontrol*) echo "$*" >>"$FAKE/calls" ;;
  sinfo*) printf '%s\\n' h1 h2 h3 h4 h5 ;;
  squeue*) printf '%s\\n' 8 9 ;;
esac
"""


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A Slurm of three small scripts, five hosts and a job on two of them."""
    for name in ("scontrol", "sinfo", "squeue"):
        (tmp_path / name).write_text(SLURM)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("EXCLUDED", "(null)")
    monkeypatch.setattr(preflight.signal, "signal", lambda *_: None)
    return {"SLURM_JOB_PARTITION": "low", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NAME": "mine"}


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_the_job_comes_back_without_hosts_bad_now_bad_before_and_left_out_by_its_user(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXCLUDED", "h[1,9]")
    line = {"event": "bad_host", "host": "h2", "checks": ["disk"], "job": "7"}
    append_line(tmp_path / "events.jsonl", line)
    assert come_back(tmp_path, Verdict({"h3": ["disk"]}), Source("7"), 0, env) == 85
    assert calls(tmp_path) == ["requeue 7", "update JobId=7 ExcNodeList=h1,h9,h2,h3"]
    _, bad, requeue = read_lines(tmp_path / "events.jsonl")
    assert (bad["event"], bad["host"], bad["checks"], bad["job"]) == (
        "bad_host",
        "h3",
        ["disk"],
        "7",
    )
    assert (requeue["event"], requeue["exit_code"], requeue["stalled"]) == ("requeue", 85, 1)
    assert requeue["reason"].startswith("preflight: unfit hosts: h3; 1 of 10")


def test_a_job_that_too_few_hosts_are_left_for_stops_and_says_so(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXCLUDED", "h[1-3]")
    assert come_back(tmp_path, Verdict({"h5": ["disk"]}), Source("7"), 0, env) == 93
    assert calls(tmp_path) == []
    done = read_json(tmp_path / "done.json")
    assert "partition low has 1 hosts and the job needs 2" in done["reason"]


def test_a_link_of_a_chain_leaves_the_bad_hosts_out_of_the_links_that_wait(
    env: dict[str, str], tmp_path: Path
) -> None:
    assert come_back(tmp_path, Verdict({"h3": ["disk"]}), Source("7", chain="c"), 0, env) == 85
    updates = [f"update JobId={job} ExcNodeList=h3" for job in (8, 9)]
    assert calls(tmp_path) == updates


def test_a_failure_that_is_no_hosts_fault_comes_back_on_any_hosts(
    env: dict[str, str], tmp_path: Path
) -> None:
    assert come_back(tmp_path, Verdict({}, "told to leave"), Source("7"), 0, env) == 85
    assert calls(tmp_path) == ["requeue 7"]


def test_a_preflight_of_a_job_that_lost_its_run_requeues_nothing(
    env: dict[str, str], tmp_path: Path
) -> None:
    events = tmp_path / "events.jsonl"
    append_line(events, {"event": "attempt", "attempt": 1, "job": "8", "restart": 0})
    before = events.read_bytes()
    assert come_back(tmp_path, Verdict({"h3": ["disk"]}), Source("7"), 0, env) == 93
    assert (calls(tmp_path), events.read_bytes()) == ([], before)


def test_link_deadline_may_be_changed() -> None:
    assert preflight.link_deadline_s({"FITB_PREFLIGHT_LINK_S": "2.5"}) == 2.5
    assert preflight.link_deadline_s({}) == preflight.LINK_S
