"""`fitb site init`: slurm/site.env written from what Slurm says of this site.

What was found stands in the file as a setting, or beside one as a comment; what could not be found
is said there, too, with the reason. slurm/site.example.env is this file where nothing was found.
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fitb import fsio
from fitb.cluster import site
from fitb.cluster.environment import NAME
from fitb.doctor.slurm import Hosts, gather
from fitb.errors import ConfigError, SystemFault

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
        name: of it.
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
        text = site.ask(*words, "format=Account,QOS", timeout_s=10)
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
    """Return the text of the file."""
    parts = [HEAD, *(f"# not found: {_one_line(why)}" for why in found.missing)]
    parts += [
        "\n# -- Where jobs run: sbatch reads these, of the shell that submits",
        *_where(found),
    ]
    parts.append(ENVIRONMENT)
    parts.append(_setting("FITB_PYTHON", found.python or "/shared/fitb/.venv/bin/python",
                          bool(found.python), "the interpreter of the jobs"))  # fmt: skip
    parts += [CONTAINER, NETWORK]
    if found.interfaces:
        parts.append(f"# of this host: {', '.join(map(_one_line, found.interfaces))}")
    parts += [_setting(f"{who}_SOCKET_IFNAME", "ib0", False) for who in ("NCCL", "GLOO")]
    return "\n".join([*parts, SCRATCH])


def _where(found: Found) -> Iterator[str]:
    accounts, several = found.accounts or ("my_project",), len(found.accounts) > 1
    if several:
        yield f"# accounts of this user: {', '.join(map(_one_line, accounts))}"
    yield _setting("SBATCH_ACCOUNT", accounts[0], len(found.accounts) == 1)
    for partition in found.partitions:
        yield f"# {_one_line(partition.sentence())}"
    best = _choice(found.partitions)
    yield _setting("SBATCH_PARTITION", best.name if best else "gpu", best is not None)
    if best and best.gpus:
        each = best.cpus // best.gpus
        yield "# a rank for each GPU of a host of it, on the command line of sbatch:"
        yield (
            f"#     sbatch --gpus-per-node={best.option or best.gpus} --ntasks-per-node={best.gpus}"
            f" --cpus-per-task={each} slurm/distill.sh ..."
        )
    limit = best.limit if best else "UNLIMITED"
    most_s = site.seconds(limit)
    short = most_s is not None and most_s < ASKED_S
    shown = "04:00:00" if most_s is None else limit
    yield _setting("SBATCH_TIMELIMIT", shown, short, "of an attempt; the next one goes on")
    if found.qos:
        yield f"# QOS of this user: {', '.join(map(_one_line, found.qos))}"
    yield _setting("SBATCH_QOS", found.qos[0] if found.qos else "normal", False)
    yield _setting("SBATCH_CONSTRAINT", "a100", False, "features of hosts: sinfo --format=%f")


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
        raise ConfigError(f"{out} is there and stays as it is; --force writes it anew")
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


HEAD = """\
# What this site wants of every job, in bash. Copy slurm/site.example.env to slurm/site.env, or let
# `fitb site init` write it, and change what is wrong. Then, in each shell that submits:
#
#     . slurm/site.env
#
# It is read twice. sbatch takes the SBATCH_ variables of the shell that submits; a script cannot
# change its own submission. The rest is for the job, whose script reads this file once more.
# On the command line of sbatch, and as flags of `python -m launch.*`, options win over it; over the
# #SBATCH lines of the scripts it wins. Every variable has to be exported.
# shellcheck shell=bash disable=SC2155,SC1091
export FITB_SITE=$(realpath "${BASH_SOURCE[0]:-$0}") # so that jobs find it, wherever submitted"""

ENVIRONMENT = """
# -- Environment of the jobs: modules, a venv or conda, whichever there is
# module load python/3.11 cuda/12.8
# . /shared/fitb/.venv/bin/activate
# . /shared/miniforge3/etc/profile.d/conda.sh && conda activate fitb"""

CONTAINER = """\
# or a container: tasks are `apptainer exec OPTIONS IMAGE python -m fitb ...`
# export FITB_APPTAINER=/shared/fitb.sif
# export FITB_APPTAINER_OPTIONS='--nv --bind /data'    # words; without this line: --nv
# export FITB_APPTAINER_PYTHON=/venv/bin/python        # in the image; without this line: python

# -- Launch
# export FITB_LAUNCHER=torchrun                        # one task a host; without: one a GPU
# export SLURM_CPU_BIND=cores                          # srun keeps each task on cores of its own
# export SLURM_GPU_BIND=none                           # every task sees all GPUs of its host"""

NETWORK = """
# -- Network between hosts: the interface that NCCL and gloo take, where they take a wrong one, and
# what the site puts behind the name of a host for its fast network
# export FITB_HOST_SUFFIX=i"""

SCRATCH = """
# -- Scratch and caches, of this shell too: write ${SLURM_JOB_ID:+...} around what jobs alone have
# export TMPDIR=/tmp${SLURM_JOB_ID:+/$SLURM_JOB_ID}    # has to exist on every host
# export HF_HOME=/scratch/$USER/huggingface            # models by name
# export TRITON_CACHE_DIR=/tmp/triton-$USER            # compiled kernels: a local disk
# export WANDB_CACHE_DIR=/scratch/$USER/wandb/cache    # what W&B keeps beside RUN_DIR/wandb
# export WANDB_DATA_DIR=/scratch/$USER/wandb/data
"""
