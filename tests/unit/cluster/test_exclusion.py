"""Which hosts are kept from the next start of a job."""

from __future__ import annotations

import os

import pytest
from executable import executable

from fitb.base.fsio import append_line
from fitb.cluster.exclusion import barred, main, slow_hosts
from fitb.rundir.restart import Source


def test_hosts_found_bad_stay_so_for_their_submission_alone():
    def found(host, **source):
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


def events(*names):
    """An attempt of job 7 that found hosts slow, and one of another job."""
    found = [{"event": "attempt", "attempt": 1, "job": "7"}]
    found += [{"event": "slow_host", "attempt": 1, "host": name} for name in names]
    found += [{"event": "attempt", "attempt": 2, "job": "6"}]
    return [*found, {"event": "slow_host", "attempt": 2, "host": "z"}]


def test_slow_hosts_are_those_that_this_submission_has_found():
    assert slow_hosts(events("a", "b", "a"), Source("7")) == ["a", "b"]
    assert slow_hosts(events("a"), Source("6")) == ["z"]
    assert slow_hosts(events("a"), Source("8")) == []


@pytest.mark.parametrize(
    ("slow", "chain", "needed", "updated", "said"),
    [
        (["h2"], "", 2, ["JobId=7 ExcNodeList=h9,h2"], "excluded as slow: h2"),
        (["h2"], "mine", 2, ["JobId=8 ExcNodeList=h9,h2", "JobId=9 ExcNodeList=h9,h2"], "h2"),
        (["h1", "h2"], "", 2, [], "has 1 hosts and the job needs 2"),
        ([], "", 2, [], ""),
    ],
)
def test_slow_hosts_are_excluded_from_the_requeued_job_or_its_chain_if_enough_are_left(
    tmp_path, monkeypatch, capsys, slow, chain, needed, updated, said
):
    for event in events(*slow):
        append_line(tmp_path / "events.jsonl", event | ({"chain": chain} if chain else {}))
    told = tmp_path / "told"
    executable(
        tmp_path / "scontrol",
        f'[[ $1 == update ]] && echo "$2 $3" >>"{told}" || echo JobState=PENDING ExcNodeList=h9',
    )
    executable(tmp_path / "sinfo", "printf 'h1\\nh2\\nh3\\nh9\\n'")
    executable(tmp_path / "squeue", "printf '8\\n9\\n'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    env = {"SLURM_JOB_ID": "7", "SLURM_JOB_PARTITION": "low", "SLURM_JOB_NUM_NODES": str(needed)}
    for name, value in (env | {"SLURM_JOB_NAME": "x", "FITB_CHAIN": chain}).items():
        monkeypatch.setenv(name, value)
    if chain:  # an earlier link found z
        updated = [line + ",z" for line in updated]
    assert main([str(tmp_path)]) == 0
    assert (told.read_text().splitlines() if told.exists() else []) == updated
    assert said in capsys.readouterr().out
