"""Rendezvous of the ranks of a job, on loopback only if all of them are on this host.

torch's TCPStore has no authentication and listens on every address of its host (docs/slurm.md),
which local runs do not need.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from fitb.base.errors import ConfigError, SystemFault
from fitb.base.world import World

_INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
_LOOPBACK = "lo"
_NAME_S = 60.0  # a DNS server may be down for a moment


def join(world: World, backend: str, timeout: timedelta) -> None:
    """Initialise torch's process group at MASTER_ADDR and MASTER_PORT of the environment.

    With one process, port 0 takes a free port, which is written to MASTER_PORT.

    Args:
        world: this rank.
        backend: backend of torch.distributed.
        timeout: timeout of the rendezvous and of collectives.
    Raises: what torch raises on a timeout; ConfigError if other hosts cannot reach this one by its
        name; SystemFault if the name of rank 0's host cannot be resolved.
    """
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if not on_this_host(os.environ):
        if _has_several_hosts(os.environ, world) and (why := unreachable(os.environ)):
            raise ConfigError(f"the ranks would not find each other: {why}")
        _wait_for_address(host)
        dist.init_process_group(backend, timeout=timeout)
        return
    if any(name == _LOOPBACK for _, name in socket.if_nameindex()):
        os.environ.setdefault(_INTERFACE_VARIABLE, _LOOPBACK)
    listener = None
    if world.is_main:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server((host, port), family=family, backlog=world.size)
        port = server.getsockname()[1]
        os.environ["MASTER_PORT"] = str(port)
        listener = server.detach()
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, world.size, world.is_main, timeout, master_listen_fd=listener, multi_tenant=True
    )
    dist.init_process_group(
        backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout
    )


def _wait_for_address(host: str) -> None:
    """Raise SystemFault if a host name does not resolve for a minute; torch would wait for ever."""
    deadline_s = time.monotonic() + _NAME_S
    while True:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise SystemFault(
                    f"MASTER_ADDR={host} (rank 0) cannot be resolved on {socket.gethostname()}"
                    f" ({error.strerror}); expected a name that every host of the job resolves;"
                    " correct FITB_HOST_SUFFIX if it is set, or have the site fix its DNS"
                ) from error
            time.sleep(1)
        else:
            return


def _has_several_hosts(env: Mapping[str, str], world: World) -> bool:
    """Whether a job spans several hosts, according to torchrun or Slurm."""
    hosts = env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or "1"
    return int(env.get("LOCAL_WORLD_SIZE", world.size)) < world.size or int(hosts) > 1


def unreachable(env: Mapping[str, str]) -> str | None:
    """Return why other hosts could not reach gloo on this host, with the remedy; else None.

    gloo announces the address to which this host's own name resolves, loopback if it does not
    resolve; Debian's installer maps the name of a host to 127.0.1.1.
    """
    if env.get(_INTERFACE_VARIABLE):
        return None
    name = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(name, None)[0][4][0])
    except OSError:
        address = ""
    if address and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return None
    return (
        f"{name} {f'is {address}' if address else 'has no address'} on {name} itself, so gloo"
        f" announces loopback; export {_INTERFACE_VARIABLE}={_interface()} for the job, or have the"
        f" site give {name} its own address in /etc/hosts"
    )


def _interface() -> str:
    """Return the interface of the default route, else the first other one, else eth0."""
    try:
        routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    except OSError:
        routes = []
    others = [name for _, name in socket.if_nameindex() if name != _LOOPBACK]
    return next((route[0] for route in routes if route[1] == "00000000"), (*others, "eth0")[0])


def on_this_host(env: Mapping[str, str]) -> bool:
    """Whether MASTER_ADDR is loopback and the store is not that of torchrun's agent."""
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return False
    try:
        return ipaddress.ip_address(env["MASTER_ADDR"]).is_loopback
    except ValueError:  # a name
        return env["MASTER_ADDR"] == "localhost"
