"""Who can reach the store through which the ranks of a run find each other."""

import json
import os
import socket
import sys
from datetime import timedelta

import pytest

from fitb.base import rendezvous
from fitb.base.errors import ConfigError, SystemFault
from fitb.base.rendezvous import _wait_for_address, join, on_this_host, unreachable
from fitb.base.world import World
from fitb.cluster.local import LocalRun

_RANK = """
import json, os, sys
from datetime import timedelta
from pathlib import Path
import psutil, torch, torch.distributed as dist
from fitb.base.rendezvous import join
from fitb.base.world import World
world = World.from_env(os.environ)
join(world, "gloo", timedelta(seconds=60))
number = torch.ones(1) * (world.rank + 1)
dist.all_reduce(number)
own = psutil.Process().net_connections("tcp")
listening = [one.laddr.ip for one in own if one.status == psutil.CONN_LISTEN]
Path(sys.argv[1], str(world.rank)).write_text(json.dumps([number.item(), listening]))
dist.barrier()
dist.destroy_process_group()
"""
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_ranks_that_one_process_starts_here_listen_on_loopback_alone(tmp_path):
    command = [sys.executable, "-c", _RANK, str(tmp_path)]
    with LocalRun(command, 2, env={"PYTHONPATH": os.pathsep.join(sys.path)}) as run:
        assert run.wait(timeout_s=120) == 0
    for rank in ("0", "1"):
        total, listening = json.loads((tmp_path / rank).read_text())
        assert total == 3.0
        assert listening or rank == "1"
        assert set(listening) <= LOOPBACK


@pytest.mark.parametrize(
    ("env", "here"),
    [
        ({"MASTER_ADDR": "127.0.0.1"}, True),
        ({"MASTER_ADDR": "::1"}, True),
        ({"MASTER_ADDR": "localhost"}, True),
        ({"MASTER_ADDR": "10.0.0.7"}, False),
        ({"MASTER_ADDR": "node17"}, False),
        ({"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}, False),
    ],
)
def test_only_a_loopback_address_says_that_all_ranks_are_here(env, here):
    assert on_this_host(env) is here


@pytest.mark.parametrize(
    ("addresses", "problem"),
    [
        (["127.0.1.1"], "is 127.0.1.1"),
        (["::1", "10.0.0.3"], "is ::1"),  # gloo takes the first
        (None, "has no address"),
        (["10.0.0.3", "127.0.1.1"], None),
        (["fe80::1%2"], None),
    ],
)
def test_a_host_whose_own_name_is_loopback_cannot_be_reached_by_others(
    monkeypatch, addresses, problem
):
    def look_up(name, port):
        if addresses is None:
            raise socket.gaierror("unknown")
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", look_up)
    why = unreachable({})
    assert (why is None) == (problem is None)
    if why is not None:
        assert problem in why and "GLOO_SOCKET_IFNAME=" in why
    assert unreachable({"GLOO_SOCKET_IFNAME": "eth0"}) is None


@pytest.mark.parametrize(
    ("env", "several"),
    [
        ({}, False),
        ({"LOCAL_WORLD_SIZE": "4"}, False),
        ({"LOCAL_WORLD_SIZE": "2"}, True),
        ({"SLURM_STEP_NUM_NODES": "1", "SLURM_NNODES": "2"}, False),
        ({"SLURM_NNODES": "2"}, True),
    ],
)
def test_the_own_name_is_blamed_in_jobs_of_several_hosts_alone_before_others_are_waited_for(
    monkeypatch, env, several
):
    """One rank ended with the reason, the others waited, and the job was a crash that came back."""

    def waits(host):
        raise SystemFault("it waits")

    for name, value in {"MASTER_ADDR": "node1", "MASTER_PORT": "1", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous, "unreachable", lambda env: "this host is 127.0.1.1")
    monkeypatch.setattr(rendezvous, "_wait_for_address", waits)
    with pytest.raises(ConfigError if several else SystemFault, match=r"127\.0\.1\.1|it waits"):
        join(World(0, 4), "gloo", timedelta(seconds=1))


def test_a_host_of_rank_0_without_an_address_is_named_in_a_minute_and_not_waited_for_ever(
    monkeypatch,
):
    """A wrong FITB_HOST_SUFFIX held two hosts until stop.hang_s, three times over."""

    def getaddrinfo(name, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(rendezvous.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(rendezvous.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemFault, match=r"MASTER_ADDR=node1x .*FITB_HOST_SUFFIX"):
        _wait_for_address("node1x")
    assert next(clock) <= 90


def test_a_name_that_is_known_after_a_moment_is_waited_for(monkeypatch):
    answers = iter([socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), None])

    def getaddrinfo(name, port):
        if error := next(answers):
            raise error

    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(rendezvous.time, "sleep", lambda seconds: None)
    _wait_for_address("node1")
    assert next(answers, "asked twice") == "asked twice"
