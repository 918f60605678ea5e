"""The processes of a job join: on loopback alone where all of them are on this host.

torch's store, through which they find each other, asks nobody for a secret and listens on every
address of its host (docs/slurm.md). What starts here for itself has no need of that.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from datetime import timedelta

from fitb.world import World

_INTERFACE = "lo"


def join(world: World, backend: str, timeout: timedelta) -> None:
    """Make torch's process group, as MASTER_ADDR and MASTER_PORT in the environment say.

    A job of one process may leave the port to the kernel: 0 becomes the port that it gave.

    Raises: what torch raises where the processes do not find each other.
    """
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if not on_this_host(os.environ):
        dist.init_process_group(backend, timeout=timeout)
        return
    if any(name == _INTERFACE for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _INTERFACE)
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


def on_this_host(env: Mapping[str, str]) -> bool:
    """Whether all processes of a job are on this host; torchrun's have its agent's store."""
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return False
    try:
        return ipaddress.ip_address(env["MASTER_ADDR"]).is_loopback
    except ValueError:  # a name
        return env["MASTER_ADDR"] == "localhost"
