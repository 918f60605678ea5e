"""This host: its name, the limits that a job inherits from the shell, the hub, W&B."""

from __future__ import annotations

import netrc
import resource
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fitb.doctor.ask import reason, within
from fitb.doctor.check import Check

_LEAST_FILES = 4096  # sockets of NCCL and gloo, shards and logs of a process
_DEFAULT_SERVER = "https://api.wandb.ai"
_REACH_S = 3.0
_OFF = ("", "0", "off", "false", "no")


def hostname(name: str, addresses: list[str] | Exception) -> Check:
    """Say whether the own name leads to an address: rank 0 is looked for under such a name."""
    if isinstance(addresses, Exception) or not addresses:
        why = reason(addresses) if isinstance(addresses, Exception) else "no address"
        fix = f"echo '127.0.1.1 {name}' >> /etc/hosts  # by the site"
        return Check("warn", "hostname", f"{name} cannot be resolved: {why}", fix)
    return Check("ok", "hostname", f"{name} is {', '.join(sorted(set(addresses))[:2])}")


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


def wandb_mode(wanted: str, env: Mapping[str, str], has_login: bool) -> str:
    """Return the mode that a run will take: as fitb.train.track, which needs torch, has it."""
    if wanted != "auto":
        return wanted
    return env.get("WANDB_MODE") or (
        "online" if env.get("WANDB_API_KEY") or has_login else "offline"
    )


def wandb_key(
    wanted: str, env: Mapping[str, str], logins: Mapping[str, bool], server: str
) -> Check:
    """Say whether there is a key; where it is, never what it is.

    Args:
        wanted: track.wandb.
        logins: host -> whether netrc has a login for it.
        server: host that W&B is asked at.
    """
    name, mode = "W&B key", wandb_mode(wanted, env, logins.get("api.wandb.ai", False))
    if mode not in ("online", "offline", "disabled"):
        found = f"WANDB_MODE={mode} is not a mode of fitb"
        return Check("warn", name, found, "unset WANDB_MODE")
    if mode == "disabled":
        return Check("ok", name, "not needed: W&B is disabled, metrics.jsonl has all")
    where = "WANDB_API_KEY" if env.get("WANDB_API_KEY") else "netrc" if logins.get(server) else ""
    if mode == "offline" and where:
        return Check("ok", name, f"in {where}; the run is offline: `fitb sync RUN` sends it")
    login = f"wandb login --host https://{server}" if server != "api.wandb.ai" else "wandb login"
    if mode == "offline" and (wanted == "offline" or env.get("WANDB_MODE")):
        return Check("ok", name, "not needed: offline; `fitb sync RUN` sends it, and needs one")
    if mode == "offline":
        found = "none, neither in WANDB_API_KEY nor in netrc: the run is written offline"
        return Check("warn", name, found, f"{login}  # or later: wandb login && fitb sync RUN")
    if not where:
        found = f"none for {server}, and the run is to be online"
        return Check("bad", name, found, f"{login}  # or: --track.wandb offline")
    return Check("ok", name, f"in {where} (not shown), for {server}")


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


def logins_of(hosts: tuple[str, ...]) -> dict[str, bool]:
    """Return for each host whether the user's netrc has a login."""
    try:
        held = netrc.netrc()
    except (OSError, netrc.NetrcParseError):  # its message may hold a word of the file
        return dict.fromkeys(hosts, False)
    return {host: held.authenticators(host) is not None for host in hosts}


def reach(server: str, port: int) -> str | None:
    """Connect and hang up; return what was in the way."""

    def connect() -> None:
        socket.create_connection((server, port), timeout=_REACH_S).close()

    found = within(_REACH_S, connect)  # a look-up of the name has no deadline of its own
    return reason(found) if isinstance(found, Exception) else None


def look(models: tuple[str, ...], env: Mapping[str, str]) -> Iterator[Check]:
    """Gather what there is to say of the host.

    Args:
        models: names that are no folders here.
    """
    name = socket.gethostname()

    def addresses() -> list[str]:
        return [str(found[4][0]) for found in socket.getaddrinfo(name, None)]

    yield hostname(name, within(_REACH_S, addresses))
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
    url = urlsplit(env.get("WANDB_BASE_URL") or _DEFAULT_SERVER)
    server = url.hostname or "api.wandb.ai"
    logins = logins_of(("api.wandb.ai", server))
    mode = wandb_mode(wanted, env, logins["api.wandb.ai"])
    proxy = urlsplit(env.get("https_proxy") or env.get("HTTPS_PROXY") or "")
    port = 80 if url.scheme == "http" else 443
    target = (proxy.hostname, proxy.port or 80) if proxy.hostname else (server, url.port or port)
    yield wandb_key(wanted, env, logins, server)
    yield wandb_server(mode, server, reach(*target) if mode == "online" else "")
