"""The checks of one host, on this machine: real processes, a real small disk, a real port."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fitb.base.errors import SystemFault
from fitb.cluster.preflight import link_deadline_s
from fitb.training import host_check
from fitb.training.host_check import check_devices, check_disk, meet, own_failures, reduce, within


def test_a_check_gives_its_answer_from_a_process_of_its_own():
    assert within(20, os.getpid) != os.getpid()


@pytest.mark.parametrize(
    ("deadline_s", "check", "said"),
    [
        (0.2, lambda: time.sleep(600), "not done in 0.2 s"),
        (20, lambda: os.kill(os.getpid(), signal.SIGKILL), "ended without an answer"),
    ],
)
def test_a_check_that_is_late_or_whose_process_is_killed_has_failed(deadline_s, check, said):
    with pytest.raises(SystemFault, match=said):
        within(deadline_s, check)


def test_a_full_disk_and_a_missing_folder_fail_by_name_and_a_probe_leaves_nothing(
    small_disk, tmp_path
):
    with pytest.raises(SystemFault, match=r"0\.002 GB are free, expected 1"):
        check_disk(str(small_disk))
    env = {"TMPDIR": str(small_disk), "SLURM_TMPDIR": str(tmp_path / "none")}
    good = tmp_path / "good"
    good.mkdir()
    failures = own_failures(str(good), None, env)
    folders = [tmp_path / "none", small_disk]
    assert [failure.split(": ")[0] for failure in failures] == [f"disk {f}" for f in folders]
    assert list(good.iterdir()) == []


def test_devices_that_multiply_rightly_pass_and_a_missing_one_does_not(monkeypatch):
    assert (torch.ones(512, 512) @ torch.ones(512, 512)).sum() > 0  # threads that a fork loses
    within(20, check_devices, {"SLURM_GPUS_ON_NODE": str(torch.cuda.device_count())})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(SystemFault, match="3 GPUs are visible; Slurm shows 4"):
        check_devices({"SLURM_GPUS_ON_NODE": "4"})


def test_a_host_whose_gpus_are_given_to_one_task_each_is_not_condemned(monkeypatch):
    """With --gpus-per-task=1 this check sees one GPU of the eight that the job has here."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    check_devices({"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "5"})


@pytest.mark.parametrize(("gpus", "each_s", "all_s"), [(0, 30, 60), (1, 40, 70), (8, 110, 140)])
def test_deadlines_leave_time_for_every_gpu_of_a_host(monkeypatch, tmp_path, gpus, each_s, all_s):
    given, now = [], [0.0]

    def within(deadline_s, check, *args):
        given.append(deadline_s)
        now[0] += deadline_s - 1

    monkeypatch.setattr(host_check, "within", within)
    monkeypatch.setattr(host_check.time, "monotonic", lambda: now[0])
    own_failures(str(tmp_path), None, {"SLURM_GPUS_ON_NODE": str(gpus)})
    assert given[0] == each_s and sum(given) - len(given) + 1 == pytest.approx(all_s, abs=3)
    assert link_deadline_s({}) >= 60 and link_deadline_s({"FITB_PREFLIGHT_LINK_S": "4"}) == 4


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def at_once(call, values):
    """What a call gives for each value, each in a thread of its own."""
    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(call, values))


@pytest.mark.parametrize(
    ("size", "deadline_s", "coming"), [(3, 20, [0, 1, 2]), (3, 1, [0, 2]), (2, 1, [1])]
)
def test_hosts_meet_where_all_come_and_part_at_the_deadline_where_one_does_not(
    size, deadline_s, coming
):
    port = free_port()

    def come(rank):
        time.sleep(0.1 * (size - rank))
        return meet(rank, size, "127.0.0.1", port, deadline_s)

    assert at_once(come, coming) == [len(coming) == size] * len(coming)


def test_a_sum_over_two_processes_gives_clocks_of_one_moment():
    port = free_port()
    clocks = at_once(lambda rank: within(30, reduce, rank, 2, "127.0.0.1", port, 20.0), (0, 1))
    assert abs(clocks[0] - clocks[1]) < 5
    assert min(clocks) > 1e9


def test_hosts_that_cannot_all_reduce_try_their_neighbours(monkeypatch):
    env = {"SLURM_JOB_ID": "7", "FITB_PREFLIGHT_LINK_S": "0.5", "GLOO_SOCKET_IFNAME": "lo"}
    monkeypatch.setattr(host_check, "START_S", 0.5)
    found = host_check.network(["127.0.0.1", "127.0.0.2"], "127.0.0.1", env)  # one is not there
    assert found == {"reduced": False, "pairs": {"127.0.0.2": False}, "clock_s": None}


def test_both_hosts_of_every_pair_begin_together_whatever_the_others_wait_for(monkeypatch):
    """Three hosts, of which one sits out each round while the others use up their deadline."""
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    begins, ends = {}, {}

    def late(deadline_s, check, rank, size, first, port, _):
        begins.setdefault(port, []).append(time.monotonic())
        time.sleep(deadline_s + 0.2)  # its process is ended after the deadline
        ends.setdefault(port, []).append(time.monotonic())
        raise SystemFault("late")

    monkeypatch.setattr(host_check, "within", late)
    env = {"FITB_PREFLIGHT_LINK_S": "0.5", "GLOO_SOCKET_IFNAME": "lo"}
    env["SLURM_JOB_ID"] = str(free_port())
    at_once(lambda host: host_check.network(hosts, host, env), hosts)
    assert sorted(map(len, begins.values())) == [2, 2, 2, 3]
    assert all(max(begins[port]) < min(ends[port]) for port in begins)
