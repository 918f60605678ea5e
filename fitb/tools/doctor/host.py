"""This host: its name, the limits that a job inherits from the shell, the hub, W&B."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from fitb.base.rendezvous import unreachable
from fitb.base.wandb_login import Login, login_of
from fitb.tools.doctor.check import Check
from fitb.tools.doctor.deadlines import reason, within

_LEAST_FILES = 4096  # sockets of NCCL and gloo, shards and logs of a process
_REACH_S = 3.0
_OFF = ("", "0", "off", "false", "no")


def hostname(name: str, misled: str | None, hosts: int) -> Check:
    """Say whether other hosts would find this one by what it says of itself.

    Args:
        misled: why not, and the remedy, as `fitb.base.rendezvous.unreachable` has it.
        hosts: of the job.
    """
    if misled is None:
        return Check("ok", "hostname", f"{name} leads to this host from others, too")
    found, _, fix = misled.partition("; ")
    if hosts == 1:
        return Check("ok", "hostname", f"{found}, which matters to jobs of several hosts alone")
    return Check("warn", "hostname", found, fix)


def open_files(soft: int, hard: int) -> Check:
    """Say whether a process may open enough files; Slurm hands the shell's limits on."""
    unlimited = resource.RLIM_INFINITY
    name, shown = "ulimit -n", "unlimited" if soft == unlimited else str(soft)
    if soft == unlimited or soft >= _LEAST_FILES:
        return Check("ok", name, shown)
    if hard == unlimited or hard >= _LEAST_FILES:
        return Check("ok", name, f"{shown}; fitb train raises it to its hard limit of {hard}")
    found = f"{shown} files, hard limit {hard}, expected {_LEAST_FILES}: each rank has a connection"
    fix = f"in /etc/security/limits.conf, by the site: * hard nofile {16 * _LEAST_FILES}"
    return Check("warn", name, found + " with every other", fix)


def locked_memory(soft: int, has_infiniband: bool) -> Check:
    """Say whether NCCL may pin memory for InfiniBand; nothing else needs it."""
    name = "ulimit -l"
    if soft == resource.RLIM_INFINITY:
        return Check("ok", name, "unlimited")
    if not has_infiniband:
        found = f"{soft // 1024} kB; matters to InfiniBand alone, which this host has not"
        return Check("ok", name, found)
    found = f"{soft // 1024} kB: NCCL over InfiniBand pins memory, and Slurm hands limits on"
    return Check("warn", name, found, "ulimit -l unlimited")


def hub(env: Mapping[str, str], names: tuple[str, ...]) -> Check:
    """Say what HF_HUB_OFFLINE does to the models of the run.

    Args:
        names: of models that are no folders here.
    """
    offline = env.get("HF_HUB_OFFLINE", "").lower() not in _OFF
    if not names:
        state = "set" if offline else "not set"
        return Check("ok", "HF_HUB_OFFLINE", f"{state}; models in folders are never looked up")
    wanted = ", ".join(names)
    if offline:
        return Check("ok", "HF_HUB_OFFLINE", f"set: {wanted} must lie in the cache of HF_HOME")
    found = f"not set: compute nodes without a network wait for the hub to find {wanted}"
    fix = f"hf download {names[0]} --local-dir models/{names[0].rpartition('/')[2]}"
    return Check("warn", "HF_HUB_OFFLINE", found, f"{fix} && export HF_HUB_OFFLINE=1")


def wandb_key(wanted: str, login: Login) -> Check:
    """Say whether there is a key; where it is, never what it is.

    Args:
        wanted: track.wandb.
    """
    name, mode, server = "W&B key", login.mode_of(wanted), urlsplit(login.url).netloc
    if mode not in ("online", "offline", "disabled"):
        found = f"WANDB_MODE={mode} is not a mode of fitb"
        return Check("warn", name, found, "unset WANDB_MODE")
    if mode == "disabled":
        return Check("ok", name, "not needed: W&B is disabled, metrics.jsonl has all")
    if mode == "offline" and login.key:
        return Check("ok", name, f"in {login.key}; the run is offline: `fitb sync RUN` sends it")
    fix = f"wandb login --host {login.url}"
    if mode == "offline" and (wanted == "offline" or login.mode):
        return Check("ok", name, "not needed: offline; `fitb sync RUN` sends it, and needs one")
    if mode == "offline":
        found = f"none for {server}, neither in WANDB_API_KEY nor in netrc: the run is offline"
        return Check("warn", name, found, f"{fix}  # or later, then fitb sync RUN")
    if not login.key:
        found = f"none for {server}, and the run is to be online"
        return Check("bad", name, found, f"{fix}  # or: --track.wandb offline")
    return Check("ok", name, f"in {login.key} (not shown), for {server}")


def wandb_server(mode: str, server: str, problem: str | None) -> Check:
    """Say whether the server can be reached.

    Args:
        problem: None where a connection was made; empty where none was tried.
    """
    name = "W&B server"
    if mode != "online":
        return Check(
            "ok", name, f"not asked: {mode}; `fitb sync RUN` sends a run from where it can"
        )
    if problem is None:
        return Check("ok", name, f"{server} can be reached from this host")
    found = f"{server} cannot be reached from here ({problem}); runs are then written offline"
    return Check("warn", name, found, "export WANDB_MODE=offline  # then fitb sync RUN, from here")


def reach(server: str, port: int) -> str | None:
    """Connect and hang up; return what was in the way."""

    def connect() -> None:
        socket.create_connection((server, port), timeout=_REACH_S).close()

    found = within(_REACH_S, connect)  # a look-up of the name has no deadline of its own
    return reason(found) if isinstance(found, Exception) else None


def look(models: tuple[str, ...], env: Mapping[str, str], hosts: int) -> Iterator[Check]:
    """Gather what there is to say of the host.

    Args:
        models: names that are no folders here.
        hosts: of the job.
    """
    name = socket.gethostname()
    misled = within(_REACH_S, partial(unreachable, env))
    if isinstance(misled, Exception):
        yield Check(
            "warn", "hostname", f"{name} cannot be resolved: {reason(misled)}", "by the site"
        )
    else:
        yield hostname(name, misled, hosts)
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    infiniband = Path("/sys/class/infiniband")
    has_infiniband = infiniband.is_dir() and any(infiniband.iterdir())
    yield locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], has_infiniband)
    yield hub(env, models)


def look_at_wandb(wanted: str, env: Mapping[str, str]) -> Iterator[Check]:
    """Gather what there is to say of W&B.

    Args:
        wanted: track.wandb.
    """
    try:
        login = login_of(env)
    except Exception as error:
        yield Check("bad", "W&B key", f"W&B cannot be asked: {reason(error)}", "pip install wandb")
        return
    url, mode = urlsplit(login.url), login.mode_of(wanted)
    server = url.hostname or ""
    proxy = urlsplit(env.get("https_proxy") or env.get("HTTPS_PROXY") or "")
    port = 80 if url.scheme == "http" else 443
    target = (proxy.hostname, proxy.port or 80) if proxy.hostname else (server, url.port or port)
    yield wandb_key(wanted, login)
    yield wandb_server(mode, server, reach(*target) if mode == "online" else "")
