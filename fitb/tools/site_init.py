"""`fitb site init`: write slurm/site.env from Slurm's answers about this site.

The file holds what was found as settings or comments, and the reason for what was not found.
slurm/site.example.env is the same file with nothing found.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fitb.base import fsio
from fitb.base.errors import ConfigError, SystemFault
from fitb.cluster import slurm, slurm_config
from fitb.cluster.scripts import find_script
from fitb.cluster.site_env import NAME
from fitb.tools.doctor.slurm import Hosts, gather

ASKED_S = 4 * 3600.0  # time limit in slurm/distill.sh


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """Write slurm/site.env from Slurm's answers about this site, for you to edit.

    Args:
        action: action to perform; there is only one.
        out: file to write.
        force: overwrite an existing file.
        json: print what was found as JSON.
    """

    action: Literal["init"]
    out: str = NAME
    force: bool = False
    json: bool = False


@dataclass(frozen=True)
class Partition:
    """A partition.

    Args:
        name: partition name.
        default: whether it is the default partition.
        limit: longest time limit, in Slurm's notation.
        hosts: number of hosts.
        cpus: CPUs of the host with the most GPUs.
        gpus: GPUs of that host.
        option: value of --gpus-per-node that excludes MIG slices; empty if a plain number does.
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
    """Facts about a site.

    Args:
        partitions: partitions, the default one first.
        accounts: accounts of this user.
        qos: QOS that this user may request.
        python: this interpreter; empty if unknown.
        interfaces: network interfaces of this host.
        missing: what was not found and why, a sentence each.
    """

    partitions: tuple[Partition, ...] = ()
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()
    python: str = ""
    interfaces: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def find() -> Found:
    """Ask sinfo, scontrol and sacctmgr, any of which may be missing."""
    names = tuple(sorted(name for _, name in socket.if_nameindex() if name != "lo"))
    found = Found(python=sys.executable, interfaces=names)
    slurm_says = gather()
    if not slurm_says.there:
        why = "no Slurm here: none of its commands is on PATH; run `fitb site init` on a login node"
        return replace(found, missing=(why,))
    answers = [answer for name, answer in slurm_says.answers.items() if name != "munge"]
    accounts, qos, why = _associations(slurm_says.config)
    return replace(
        found,
        partitions=tuple(partitions_of(slurm_says.partitions, slurm_says.hosts)),
        accounts=accounts,
        qos=qos,
        missing=tuple(filter(None, [*(answer.problem for answer in answers), why])),
    )


def partitions_of(
    records: Mapping[str, Mapping[str, str]], hosts: Iterable[Hosts]
) -> Iterator[Partition]:
    """Join the records of scontrol and the hosts of sinfo by partition, the default one first."""
    groups = list(hosts)
    for name, fields in sorted(records.items(), key=lambda pair: pair[1].get("Default") != "YES"):
        own = [group for group in groups if group.partition == name]
        none = Hosts(name, number=0, cpus=0, gpus=0)
        best = max(own, key=lambda group: (group.gpus, group.cpus), default=none)
        yield Partition(
            name,
            fields.get("Default") == "YES",
            fields.get("MaxTime", "UNLIMITED"),
            sum(group.number for group in own),
            best.cpus,
            best.gpus,
            best.option,
        )


def _associations(config: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return accounts and QOS of this user, and why there are none."""
    storage = config.get("AccountingStorageType", "unknown")
    if storage.endswith(("none", "(null)")):
        return (), (), f"accounts and QOS: there are none (AccountingStorageType={storage})"
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
    """Return the distinct accounts and QOS in lines such as nlp|normal,long."""
    rows = [line.split("|") for line in text.splitlines() if "|" in line]
    accounts = dict.fromkeys(row[0] for row in rows if row[0])
    qos = dict.fromkeys(name for row in rows for name in row[1].split(",") if name)
    return tuple(accounts), tuple(qos)


def _setting(name: str, value: str, active: bool, comment: str = "") -> str:
    line = f"export {name}={shlex.quote(value)}"
    line = line if active else f"# {line}"
    return f"{line:<54} # {comment}" if comment else line


def render(found: Found) -> str:
    """Return the text of the file: the example with lines replaced by what was found."""
    example = find_script("site.example.env")
    if example is None:
        raise ConfigError("slurm/site.example.env is not found; reinstall fitb")
    where, lines = _where(found), []
    for line in example.read_text().splitlines():
        name = re.match(r"(?:# )?export (\w+)=", line)
        lines += where.get(name[1], [line]) if name else [line]
        if name and name[1] == "FITB_SITE":  # last line of the header
            lines += [f"# not found: {_one_line(why)}" for why in found.missing]
    return "\n".join([*lines, ""])


def _where(found: Found) -> dict[str, list[str]]:
    """Return variable -> lines that replace the example's, for what was found."""
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
            comment = "of an attempt; the next one resumes"
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
        "# to run one rank per GPU:",
        f"#     sbatch {option} --cpus-per-task={best.cpus // best.gpus} slurm/distill.sh ...",
    ]


def _choice(partitions: Sequence[Partition]) -> Partition | None:
    """Return the default partition, or if it has no GPUs the first that has some."""
    default = [partition for partition in partitions if partition.default]
    with_gpus = [partition for partition in (*default, *partitions) if partition.gpus]
    return next(iter([*with_gpus, *default, *partitions]), None)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def init(config: SiteConfig) -> dict[str, Any]:
    """Write the file; return what was found and the path.

    Raises: ConfigError if the file exists; SystemFault if it cannot be written.
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
    """Render a result of `init` for people."""
    lines = [f"not found: {why}" for why in result["missing"]]
    lines += [Partition(**each).sentence() for each in result["partitions"]]
    if result["accounts"]:
        lines.append(f"accounts: {', '.join(result['accounts'])}")
    path = shlex.quote(result["path"])
    return "\n".join([*lines, f"wrote {path}; check it, then `. {path}` and submit"])
