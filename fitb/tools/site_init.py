"""`fitb site init`: slurm/site.env written from what Slurm says of this site.

What was found stands in the file as a setting, or beside one as a comment; what could not be found
is said there, too, with the reason. slurm/site.example.env is this file where nothing was found.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fitb.base import fsio
from fitb.base.errors import ConfigError, SystemFault
from fitb.cluster import slurm, slurm_config
from fitb.cluster.scripts import find_script
from fitb.cluster.site_env import NAME
from fitb.tools.doctor.slurm import Hosts, gather

ASKED_S = 4 * 3600.0  # that slurm/distill.sh asks for


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """Write slurm/site.env from what Slurm says; it is then yours to change.

    Args:
        action: the one thing there is to do.
        out: file to write.
        force: write over one that is there.
        json: print what was found as JSON.
    """

    action: Literal["init"]
    out: str = NAME
    force: bool = False
    json: bool = False


@dataclass(frozen=True)
class Partition:
    """What a partition offers.

    Args:
        name: partition name.
        default: whether a job without --partition goes there.
        limit: its longest time, as Slurm writes it.
        hosts: their number.
        cpus: of the host with the most GPUs.
        gpus: of that host.
        option: of sbatch for all of them, where their number alone would mean others too.
    """

    name: str
    default: bool = False
    limit: str = "UNLIMITED"
    hosts: int = 0
    cpus: int = 0
    gpus: int = 0
    option: str = ""

    def sentence(self) -> str:
        also = " (the default)" if self.default else ""
        about = f"partition {self.name}{also}: at most {self.limit}; {self.hosts} hosts"
        if not self.gpus:
            return f"{about} without GPUs"
        each = self.cpus // self.gpus
        return f"{about}, of {self.gpus} GPUs and {self.cpus} CPUs, {each} CPUs to a GPU"


@dataclass(frozen=True)
class Found:
    """What this machine says of its site.

    Args:
        partitions: the default one first.
        accounts: of this user.
        qos: that this user may ask for.
        python: this interpreter; empty where nobody looked.
        interfaces: of the network of this host.
        missing: what could not be found, and why, a sentence each.
    """

    partitions: tuple[Partition, ...] = ()
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()
    python: str = ""
    interfaces: tuple[str, ...] = ()
    missing: tuple[str, ...] = field(default=())


def find() -> Found:
    """Ask sinfo, scontrol and sacctmgr; none of them need be there."""
    missing: list[str] = []
    asked = gather()
    partitions: tuple[Partition, ...] = ()
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()
    if not asked.there:
        missing.append(
            "no Slurm here: none of its commands is on PATH; run `fitb site init` on a login node"
        )
    else:
        told = {name: answer for name, answer in asked.answers.items() if name != "munge"}
        missing += [answer.problem for answer in told.values() if not answer.ok]
        partitions = tuple(partitions_of(asked.partitions, asked.hosts))
        accounts, qos, why = _associations(asked.config)
        missing += [why] if why else []
    names = tuple(sorted(name for _, name in socket.if_nameindex() if name != "lo"))
    return Found(partitions, accounts, qos, sys.executable, names, tuple(missing))


def partitions_of(
    records: Mapping[str, Mapping[str, str]], hosts: Iterable[Hosts]
) -> Iterator[Partition]:
    """Join what scontrol and sinfo say of each partition, the default one first.

    Args:
        records: name -> fields, of `scontrol show partition`.
        hosts: of sinfo.
    """
    groups = list(hosts)
    for name, fields in sorted(records.items(), key=lambda pair: pair[1].get("Default") != "YES"):
        own = [group for group in groups if group.partition == name]
        best = max(own, key=lambda group: (group.gpus, group.cpus), default=None)
        yield Partition(
            name,
            fields.get("Default") == "YES",
            fields.get("MaxTime", "UNLIMITED"),
            sum(group.number for group in own),
            best.cpus if best else 0,
            best.gpus if best else 0,
            best.option if best else "",
        )


def _associations(config: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return accounts and QOS of this user, and why there are none."""
    storage = config.get("AccountingStorageType", "unknown")
    if storage.endswith(("none", "(null)")):
        return (), (), f"accounts and QOS: Slurm keeps none here (AccountingStorageType={storage})"
    user = getpass.getuser()
    words = ("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}")
    try:
        text = slurm.ask(*words, "format=Account,QOS", timeout_s=10)
    except SystemFault as error:
        return (), (), f"accounts and QOS: {error}"
    accounts, qos = parse_associations(text)
    why = "" if accounts else f"accounts: `{' '.join(words)}` names none"
    return accounts, qos, why


def parse_associations(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return accounts and QOS of lines such as nlp|normal,long, each once and in their order."""
    rows = [line.split("|") for line in text.splitlines() if "|" in line]
    accounts = dict.fromkeys(row[0] for row in rows if row[0])
    qos = dict.fromkeys(name for row in rows for name in row[1].split(",") if name)
    return tuple(accounts), tuple(qos)


def _setting(name: str, value: str, active: bool, comment: str = "") -> str:
    line = f"export {name}={shlex.quote(value)}"
    line = line if active else f"# {line}"
    return f"{line:<54} # {comment}" if comment else line


def render(found: Found) -> str:
    """Return the text of the file: the example, with what was found in place of its lines."""
    example = find_script("site.example.env")
    if example is None:
        raise ConfigError("slurm/site.example.env is neither here nor with the package; reinstall")
    where, lines = _where(found), []
    for line in example.read_text().splitlines():
        name = re.match(r"(?:# )?export (\w+)=", line)
        lines += where.get(name[1], [line]) if name else [line]
        if name and name[1] == "FITB_SITE":  # the last line of the head
            lines += [f"# not found: {_one_line(why)}" for why in found.missing]
    return "\n".join([*lines, ""])


def _where(found: Found) -> dict[str, list[str]]:
    """Return the lines in place of a variable's, of the variables of which something was found."""
    lines: dict[str, list[str]] = {}
    if found.accounts:
        one, shown = len(found.accounts) == 1, ", ".join(map(_one_line, found.accounts))
        several = [] if one else [f"# accounts of this user: {shown}"]
        lines["SBATCH_ACCOUNT"] = [*several, _setting("SBATCH_ACCOUNT", found.accounts[0], one)]
    best = _choice(found.partitions)
    if best:
        sentences = [f"# {_one_line(partition.sentence())}" for partition in found.partitions]
        setting = _setting("SBATCH_PARTITION", best.name, True)
        lines["SBATCH_PARTITION"] = [*sentences, setting, *_options(best)]
        most_s = slurm_config.seconds(best.limit)
        if most_s is not None:
            comment = "of an attempt; the next one goes on"
            limit = _setting("SBATCH_TIMELIMIT", best.limit, most_s < ASKED_S, comment)
            lines["SBATCH_TIMELIMIT"] = [limit]
    if found.qos:
        shown = f"# QOS of this user: {', '.join(map(_one_line, found.qos))}"
        lines["SBATCH_QOS"] = [shown, _setting("SBATCH_QOS", found.qos[0], False)]
    if found.python:
        python = _setting("FITB_PYTHON", found.python, True, "the interpreter of the jobs")
        lines["FITB_PYTHON"] = [python]
    if found.interfaces:
        shown = f"# of this host: {', '.join(map(_one_line, found.interfaces))}"
        lines["NCCL_SOCKET_IFNAME"] = [shown, _setting("NCCL_SOCKET_IFNAME", "ib0", False)]
    return lines


def _options(best: Partition) -> list[str]:
    if not best.gpus:
        return []
    option = f"--gpus-per-node={best.option or best.gpus} --ntasks-per-node={best.gpus}"
    return [
        "# a rank for each GPU of a host of it, on the command line of sbatch:",
        f"#     sbatch {option} --cpus-per-task={best.cpus // best.gpus} slurm/distill.sh ...",
    ]


def _choice(partitions: Sequence[Partition]) -> Partition | None:
    """The default partition, or where it has no GPUs the first that has some."""
    default = [partition for partition in partitions if partition.default]
    with_gpus = [partition for partition in (*default, *partitions) if partition.gpus]
    return next(iter([*with_gpus, *default, *partitions]), None)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def init(config: SiteConfig) -> dict[str, Any]:
    """Write the file; return what was found and where it was written.

    Raises: ConfigError where there is one already; SystemFault where it cannot be written.
    """
    out = Path(config.out)
    if out.exists() and not config.force:
        raise ConfigError(f"{out} already exists; use --force to overwrite it")
    found = find()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fsio.write_atomic(out, render(found))
        os.chmod(out, 0o644)
    except OSError as error:
        raise SystemFault(f"{out} cannot be written: {error.strerror or error}") from error
    return {"path": str(out), **asdict(found)}


def say(result: dict[str, Any]) -> str:
    """Render what `init` did."""
    lines = [f"not found: {why}" for why in result["missing"]]
    lines += [Partition(**each).sentence() for each in result["partitions"]]
    if result["accounts"]:
        lines.append(f"accounts: {', '.join(result['accounts'])}")
    path = shlex.quote(result["path"])
    return "\n".join([*lines, f"wrote {path}: look it through, then `. {path}` and submit"])
