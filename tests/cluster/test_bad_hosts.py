"""Hosts that are really bad, found by the preflight of slurm/distill.sh on a real Slurm."""

from __future__ import annotations

import json

import pytest
from machine import wait_until
from slurm_cluster import HOSTS_OF, a_cluster

from fitb.cluster import submit

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(slurm):
    """Five hosts, which a test may spoil; the session's two stay whole."""
    with a_cluster(num_hosts=5) as cluster:
        yield cluster


def full_disk(cluster, host, folder):
    """Fill a folder up as one host sees it; the others see the machine's own disk."""
    folder.mkdir()
    cluster.on(host, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    cluster.on(host, "sh", "-c", f"head -c 2M /dev/zero >{folder}/file 2>/dev/null || true")
    return folder


def test_hosts_with_a_full_disk_or_no_network_are_found_and_excluded_from_the_requeue(
    cluster, run, tmp_path
):
    full, cut, *good = cluster.hosts
    scratch = full_disk(cluster, full, tmp_path / "scratch")
    cluster.on(cut, "ip", "link", "set", cluster.FABRIC, "down")
    job = run.sbatch(
        "--nodes=3",
        "--ntasks-per-node=1",
        env={
            "FITB_PREFLIGHT": "1",
            "FITB_PREFLIGHT_LINK_S": "4",
            "GLOO_SOCKET_IFNAME": cluster.FABRIC,
            "TMPDIR": str(scratch),
        },
        flags=["--global_batch", "192", "--steps", "20"],
    )
    assert cluster.wait_end(job) == "COMPLETED", run.logs()
    found = {event["host"]: event["checks"] for event in run.events("bad_host")}
    assert list(found) == [full, cut]
    assert found[full] == [f"disk {scratch}: 0.000 GB are free, expected 1"]
    (network,) = found[cut]
    assert network == f"no reduction with {full}, {good[0]}"
    (requeue,) = run.events("requeue")
    assert requeue["exit_code"] == 85
    assert requeue["reason"].startswith(f"preflight: unfit hosts: {full}, {cut}; 1 of 10")
    record = cluster.show(job)
    assert record["ExcNodeList"] == f"{full},{cut}"
    assert record["NodeList"] == f"{cluster.prefix}h[3-5]"
    assert record["Restarts"] == "1"
    assert len(run.events("attempt")) == 1
    (passed,) = (run.folder / "preflight").glob(f"{job}.1.0/{good[0]}.json")
    assert json.loads(passed.read_text())["reduced"]
    assert run.saved() == 20
    said = run.batch_log.read_text()
    assert f"{cut} is not fit: no reduction with" in said
    assert requeue["reason"] in said
    assert "all 3 hosts are fit" in said


def test_hosts_whose_own_name_is_loopback_are_told_and_not_barred(cluster, run):
    """Debian's installer writes 127.0.1.1; the preflight blamed good hosts for it."""
    for host in cluster.hosts:
        path = HOSTS_OF / host / "hosts"
        others = [line for line in path.read_text().splitlines() if line.split()[1] != host]
        path.write_text("\n".join([*others, f"127.0.1.1 {host}", ""]))
    env = {"FITB_PREFLIGHT": "1", "FITB_PREFLIGHT_LINK_S": "4"}
    job = run.sbatch("--ntasks-per-node=1", env=env)
    assert cluster.wait_end(job) == "FAILED"
    record = cluster.show(job)
    assert (record["ExitCode"], record["ExcNodeList"]) == ("93:0", "(null)"), run.logs()
    assert run.events("bad_host") == []
    (stop,) = run.events("stop")
    assert "127.0.1.1" in stop["reason"] and "GLOO_SOCKET_IFNAME=eth0" in stop["reason"]
    job = run.sbatch("--ntasks-per-node=1", env=env | {"GLOO_SOCKET_IFNAME": "eth0"})
    assert cluster.wait_end(job) == "COMPLETED", run.logs()


def test_submitit_chain_goes_on_without_a_bad_host_and_from_where_a_link_left(
    cluster, run, tmp_path, monkeypatch
):
    bad = cluster.hosts[0]
    monkeypatch.setenv("TMPDIR", str(full_disk(cluster, bad, tmp_path / "scratch")))
    monkeypatch.setattr(submit, "STATE_POLL_S", 0.5)
    first, *links = run.submitit(monkeypatch, "--time_min", "30", links=4, preflight=True)
    wait_until(lambda: run.saved() >= 10, 90, "a first checkpoint")
    cluster("scancel", "--signal=USR2", links[0].job_id)
    assert cluster.wait_end(links[2].job_id) == "COMPLETED", run.logs()
    assert [event["host"] for event in run.events("bad_host")] == [bad]
    unfit, left = run.events("requeue")
    assert (unfit["job"], unfit["step"]) == (first.job_id, 0)
    assert (left["job"], left["exit_code"]) == (links[0].job_id, 85)
    assert len({event["chain"] for event in (unfit, left)}) == 1
    assert [event["step"] for event in run.events("attempt")] == [0, left["step"]]
    assert json.loads((run.folder / "done.json").read_text())["job"] == links[1].job_id
    assert {cluster.show(link.job_id)["ExcNodeList"] for link in links} == {bad}
    assert not (run.folder / "preflight" / f"{links[2].job_id}.0").exists()
    assert [submit.wait_for(job, run.folder) for job in (first, *links)] == [85, 85, 0, 0]
