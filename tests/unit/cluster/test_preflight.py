from __future__ import annotations

import os

import pytest
from executable import executable

from fitb.base.fsio import append_line, read_json, read_lines
from fitb.cluster import preflight
from fitb.cluster.preflight import Verdict, come_back, judge, pair_rounds
from fitb.rundir.restart import Source

NO_ONE = "the all-reduce over all hosts failed, and no single host is at fault"


def record(clock_s=0.0, failures=(), **pairs):
    """A host that reduced with all, or with those named only."""
    reduced = not pairs
    return {
        "failures": list(failures),
        "reduced": reduced,
        "pairs": pairs,
        "clock_s": clock_s if reduced else None,
    }


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 4, 5, 8, 31])
def test_every_host_meets_both_neighbours_and_one_at_a_time(num_hosts):
    rounds = pair_rounds(num_hosts)
    assert len(rounds) == {1: 0, 2: 1}.get(num_hosts, 2 + num_hosts % 2)
    for pairs in rounds:
        met = [host for pair in pairs for host in pair]
        assert len(met) == len(set(met))
    every = {frozenset(pair) for pairs in rounds for pair in pairs}
    ring = {frozenset((i, (i + 1) % num_hosts)) for i in range(num_hosts)}
    assert every == {pair for pair in ring if len(pair) == 2}


def ring(hosts, **reached):
    """Records of hosts that reduced with these of their neighbours, and not with the others."""

    def beside(host):
        place = hosts.index(host)
        return {hosts[place - 1], hosts[(place + 1) % len(hosts)]}

    return {
        host: record(**{other: other in found for other in beside(host)})
        for host, found in reached.items()
    }


APART = ring("abc", a="", b="", c="")  # no two reach each other


# Records by host; of those in `hosts` without one nothing came.
@pytest.mark.parametrize(
    ("hosts", "records", "bad"),
    [
        ("abc", {host: record(100.0) for host in "abc"}, {}),
        ("abc", ring("abc", a="b", b="a"), {"c": ["no answer before the deadline"]}),
        ("ac", ring("ac", a=""), {"c": ["no answer before the deadline"]}),
        (
            "ab",
            {"a": record(failures=("disk full", "no GPU")), "b": record()},
            {"a": ["disk full", "no GPU"]},
        ),
        ("abcd", ring("abcd", a="d", b="", c="d", d="ac"), {"b": ["no reduction with a, c"]}),
        # A pair works only if both say so.
        ("abc", ring("abc", a="bc", b="", c="ab"), {"b": ["no reduction with a, c"]}),
        # Of two none is cleared.
        (
            "ab",
            ring("ab", a="", b=""),
            {"a": ["no reduction with b"], "b": ["no reduction with a"]},
        ),
        ("abc", APART | {"a": APART["a"] | {"failures": ["disk full"]}}, {"a": ["disk full"]}),
        (
            "abcd",  # against the median of all clocks
            {"a": record(100.0), "b": record(107.5), "c": record(100.2), "d": record(99.9)},
            {"b": ["its clock is +7.4 s off the median of the hosts"]},
        ),
    ],
)
def test_hosts_are_bad_by_what_they_say_their_clocks_and_whom_they_reach(hosts, records, bad):
    assert judge(hosts, records) == Verdict(bad)


@pytest.mark.parametrize("records", [APART, ring("abc", a="bc", b="ac", c="ab")])
def test_a_network_that_carries_no_pair_or_not_all_together_is_no_hosts_fault(records):
    assert judge("abc", records) == Verdict({}, NO_ONE)


def test_no_host_is_to_blame_for_what_its_own_name_leads_to():
    """Debian's 127.0.1.1: good hosts were barred, and the job went on to the next pair."""
    why = "a is 127.0.1.1 on a itself; export GLOO_SOCKET_IFNAME=eth0"
    misled = {**record(None), "reduced": False, "unreachable": why}
    for other in (misled, record(a=False)):
        assert judge("ab", {"a": misled, "b": other}) == Verdict({}, why, transient=False)
    full = {**misled, "failures": ["disk /tmp: full"]}
    assert judge("ab", {"a": misled, "b": full}).bad == {"b": ["disk /tmp: full"]}


SLURM = """\
case "${0##*/} $1" in
  "scontrol show") echo "JobId=7 JobState=RUNNING ExcNodeList=$EXCLUDED" ;;
  scontrol*) echo "$*" >>"$FAKE/calls" ;;
  sinfo*) printf '%s\\n' h1 h2 h3 h4 h5 ;;
  squeue*) printf '%s\\n' 8 9 ;;
esac
"""


@pytest.fixture
def env(tmp_path, monkeypatch):
    """A Slurm of three small scripts, five hosts and a job on two of them."""
    for name in ("scontrol", "sinfo", "squeue"):
        executable(tmp_path / name, SLURM)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("EXCLUDED", "(null)")
    monkeypatch.setattr(preflight.signal, "signal", lambda *_: None)
    return {"SLURM_JOB_PARTITION": "low", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NAME": "mine"}


def calls(tmp_path):
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_the_job_comes_back_without_hosts_bad_now_bad_before_and_left_out_by_its_user(
    env, tmp_path, monkeypatch
):
    monkeypatch.setenv("EXCLUDED", "h[1,9]")
    line = {"event": "bad_host", "host": "h2", "checks": ["disk"], "job": "7"}
    append_line(tmp_path / "events.jsonl", line)
    assert come_back(tmp_path, Verdict({"h3": ["disk"]}), Source("7"), 0, env) == 85
    assert calls(tmp_path) == ["requeue 7", "update JobId=7 ExcNodeList=h1,h9,h2,h3"]
    _, bad, requeue = read_lines(tmp_path / "events.jsonl")
    seen = {name: bad[name] for name in ("event", "host", "checks", "job")}
    assert seen == {**line, "host": "h3"}
    assert (requeue["event"], requeue["exit_code"], requeue["stalled"]) == ("requeue", 85, 1)
    assert requeue["reason"].startswith("preflight: unfit hosts: h3; 1 of 10")


def test_a_job_that_too_few_hosts_are_left_for_stops_and_says_so(env, tmp_path, monkeypatch):
    monkeypatch.setenv("EXCLUDED", "h[1-3]")
    assert come_back(tmp_path, Verdict({"h5": ["disk"]}), Source("7"), 0, env) == 93
    assert calls(tmp_path) == []
    done = read_json(tmp_path / "done.json")
    assert "partition low has 1 hosts and the job needs 2" in done["reason"]


@pytest.mark.parametrize(
    ("verdict", "chain", "told"),
    [
        (Verdict({"h3": ["disk"]}), "c", [f"update JobId={job} ExcNodeList=h3" for job in (8, 9)]),
        (Verdict({}, "told to leave"), "", ["requeue 7"]),
    ],
)
def test_links_that_wait_leave_bad_hosts_out_and_where_none_is_any_will_do(
    env, tmp_path, verdict, chain, told
):
    assert come_back(tmp_path, verdict, Source("7", chain=chain), 0, env) == 85
    assert calls(tmp_path) == told


def test_a_preflight_of_a_job_that_lost_its_run_requeues_nothing(env, tmp_path):
    events = tmp_path / "events.jsonl"
    append_line(events, {"event": "attempt", "attempt": 1, "job": "8", "restart": 0})
    before = events.read_bytes()
    assert come_back(tmp_path, Verdict({"h3": ["disk"]}), Source("7"), 0, env) == 93
    assert (calls(tmp_path), events.read_bytes()) == ([], before)
