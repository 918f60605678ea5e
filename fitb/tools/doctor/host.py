"""Checks of this host: name resolution, ulimits that a job inherits, Hugging Face hub, W&B."""

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

_LEAST_FILES = 4096  # a process's sockets of NCCL and gloo, shards and logs
_REACH_S = 3.0
_OFF = ("", "0", "off", "false", "no")


def hostname(name: str, misled: str | None, hosts: int) -> Check:
    """Check that other hosts can connect to this one by its name.

    Args:
        misled: reason and remedy from `fitb.base.rendezvous.unreachable`; None if reachable.
    """
    if misled is None:
        return Check("ok", "hostname", f"{name} resolves to an address that others can reach")
    found, _, fix = misled.partition("; ")
    if hosts == 1:
        return Check("ok", "hostname", f"{found}; this matters only to jobs on several hosts")
    return Check("warn", "hostname", found, fix)


def open_files(soft: int, hard: int) -> Check:
    """Check the limit of open files; Slurm passes the shell's limits to the job."""
    unlimited = resource.RLIM_INFINITY
    name, shown = "ulimit -n", "unlimited" if soft == unlimited else str(soft)
    if soft == unlimited or soft >= _LEAST_FILES:
        return Check("ok", name, shown)
    if hard == unlimited or hard >= _LEAST_FILES:
        return Check("ok", name, f"{shown}; fitb train raises it to its hard limit of {hard}")
    found = f"{shown} files, hard limit {hard}, expected {_LEAST_FILES}: all ranks interconnect"
    fix = f"in /etc/security/limits.conf, by the site: * hard nofile {16 * _LEAST_FILES}"
    return Check("warn", name, found, fix)


def locked_memory(soft: int, has_infiniband: bool) -> Check:
    """Check the limit of locked memory, which NCCL needs for InfiniBand and nothing else does."""
    name = "ulimit -l"
    if soft == resource.RLIM_INFINITY:
        return Check("ok", name, "unlimited")
    if not has_infiniband:
        return Check("ok", name, f"{soft // 1024} kB; matters only with InfiniBand")
    found = f"{soft // 1024} kB: NCCL over InfiniBand pins memory"
    return Check("warn", name, found, "ulimit -l unlimited")


def hub(env: Mapping[str, str], names: tuple[str, ...]) -> Check:
    """Check HF_HUB_OFFLINE against the models of the run.

    Args:
        names: models that are names on the hub, not local folders.
    """
    offline = env.get("HF_HUB_OFFLINE", "").lower() not in _OFF
    if not names:
        state = "set" if offline else "not set"
        return Check("ok", "HF_HUB_OFFLINE", f"{state}; no model to look up on the hub")
    wanted = ", ".join(names)
    if offline:
        return Check("ok", "HF_HUB_OFFLINE", f"set: {wanted} must be in the cache of HF_HOME")
    found = f"not set: compute nodes without a network would wait for the hub to find {wanted}"
    fix = f"hf download {names[0]} --local-dir models/{names[0].rpartition('/')[2]}"
    return Check("warn", "HF_HUB_OFFLINE", found, f"{fix} && export HF_HUB_OFFLINE=1")


def wandb_key(wanted: str, login: Login) -> Check:
    """Check that W&B has an API key; report where it is, never its value."""
    name, mode, server = "W&B key", login.mode_of(wanted), urlsplit(login.url).netloc
    if mode not in ("online", "offline", "disabled"):
        found = f"WANDB_MODE={mode} is not a mode of fitb"
        return Check("warn", name, found, "unset WANDB_MODE")
    if mode == "disabled":
        return Check("ok", name, "not needed: W&B is disabled")
    if mode == "offline" and login.key:
        return Check("ok", name, f"in {login.key}; the run is offline: `fitb sync RUN` sends it")
    fix = f"wandb login --host {login.url}"
    if mode == "offline" and (wanted == "offline" or login.mode):
        return Check("ok", name, "not needed: offline, until `fitb sync RUN`")
    if mode == "offline":
        found = f"none for {server} in WANDB_API_KEY or netrc, so the run will be offline"
        return Check("warn", name, found, f"{fix}  # or later, then fitb sync RUN")
    if not login.key:
        found = f"none for {server}, and track.wandb is online"
        return Check("bad", name, found, f"{fix}  # or: --track.wandb offline")
    return Check("ok", name, f"in {login.key} (not shown), for {server}")


def wandb_server(mode: str, server: str, problem: str | None) -> Check:
    """Check that the W&B server can be reached.

    Args:
        problem: why a connection failed; None if it did not; ignored unless mode is online.
    """
    name = "W&B server"
    if mode != "online":
        return Check("ok", name, f"not contacted: the run is {mode}")
    if problem is None:
        return Check("ok", name, f"{server} can be reached from this host")
    found = f"{server} cannot be reached from here ({problem}); runs will be offline"
    return Check("warn", name, found, "export WANDB_MODE=offline  # then fitb sync RUN, from here")


def reach(server: str, port: int) -> str | None:
    """Connect to a server; return why that fails, None if it does not."""

    def connect() -> None:
        socket.create_connection((server, port), timeout=_REACH_S).close()

    found = within(_REACH_S, connect)  # a DNS lookup has no timeout of its own
    return reason(found) if isinstance(found, Exception) else None


def look(models: tuple[str, ...], env: Mapping[str, str], hosts: int) -> Iterator[Check]:
    """Yield all checks of the host.

    Args:
        models: models that are names on the hub.
    """
    name = socket.gethostname()
    misled = within(_REACH_S, partial(unreachable, env))
    if isinstance(misled, Exception):
        found = f"{name} cannot be resolved: {reason(misled)}"
        yield Check("warn", "hostname", found, "by the site")
    else:
        yield hostname(name, misled, hosts)
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    infiniband = Path("/sys/class/infiniband")
    has_infiniband = infiniband.is_dir() and any(infiniband.iterdir())
    yield locked_memory(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], has_infiniband)
    yield hub(env, models)


def look_at_wandb(wanted: str, env: Mapping[str, str]) -> Iterator[Check]:
    """Yield the checks of W&B."""
    try:
        login = login_of(env)
    except Exception as error:
        yield Check("bad", "W&B key", f"wandb fails: {reason(error)}", "pip install wandb")
        return
    url, mode = urlsplit(login.url), login.mode_of(wanted)
    server = url.hostname or ""
    proxy = urlsplit(env.get("https_proxy") or env.get("HTTPS_PROXY") or "")
    port = 80 if url.scheme == "http" else 443
    target = (proxy.hostname, proxy.port or 80) if proxy.hostname else (server, url.port or port)
    yield wandb_key(wanted, login)
    yield wandb_server(mode, server, reach(*target) if mode == "online" else "")
