"""Resources that slurm/distill.sh requests from sbatch, in whatever form they are written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fitb.base.errors import ConfigError
from fitb.cluster import slurm_config
from fitb.cluster.sbatch import hosts_and_tasks, number_of, read_options, values
from fitb.tools.doctor.check import Check

_SLICE = re.compile(r"\d+g\.\d+gb.*")  # MIG slice, such as 1g.10gb


@dataclass(frozen=True)
class JobRequest:
    """Requested resources.

    Args:
        nodes: number of hosts.
        tasks: tasks per host.
        gpus: GPUs per host.
        cpus: CPUs per task.
        partition: partition name; None for the default one.
    """

    nodes: int = 1
    tasks: int = 1
    gpus: int = 0
    cpus: int = 1
    partition: str | None = None


def gpus_of(gres: str) -> Iterator[tuple[str, int]]:
    """Yield type and number of the GPUs in a GRES string such as gpu:a100:4(S:0-1),tmp:1."""
    for one in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *words = one.split(":")
        if name == "gpu":
            number = int(words.pop()) if words and words[-1].isdigit() else 1
            yield words[0] if words else "", number


def num_gpus(gres: str) -> int:
    """Return the number of whole GPUs in a GRES string, or of MIG slices if there are none."""
    whole = [number for kind, number in gpus_of(gres) if not _SLICE.fullmatch(kind)]
    return sum(whole or [number for _, number in gpus_of(gres)])


def gpus_option(gres: str) -> str:
    """Return the --gpus-per-node that excludes MIG slices; empty if a plain number does."""
    found = list(gpus_of(gres))
    whole = [(kind, number) for kind, number in found if not _SLICE.fullmatch(kind)]
    if whole in ([], found):
        return ""
    return ",".join(f"{kind}:{number}" for kind, number in whole)


def request_of(script: str, words: Sequence[str], env: Mapping[str, str]) -> JobRequest:
    """Return what sbatch would request; options override the environment, that #SBATCH lines."""
    found, own = values(read_options(script, env, words)), values(read_options(words=words))
    if "ntasks" in own and "ntasks-per-node" not in own:
        found.pop("ntasks-per-node", None)
    nodes, tasks = hosts_and_tasks(found)
    gpus = _gpus(own, nodes, tasks)
    if gpus is None:
        gpus = _gpus(found, nodes, tasks) or 0
    return JobRequest(
        nodes, tasks, gpus, number_of(found, "cpus-per-task") or 1, found.get("partition")
    )


def timing(script: str, words: Sequence[str], env: Mapping[str, str]) -> Iterator[Check]:
    """Check that the time limit is longer than the lead of the signal before it."""
    options, name = values(read_options(script, env, words)), "time limit"
    try:
        why = slurm_config.leaves_at_once(options.get("time"), options.get("signal"))
    except ConfigError as error:
        yield Check("bad", name, str(error), "fitb doctor --sbatch=--time=04:00:00 ...")
    else:
        if why:
            found, _, fix = why.rpartition("; ")
            yield Check("warn", name, found, fix)


def _gpus(found: Mapping[str, str], nodes: int, tasks: int) -> int | None:
    """Return the GPUs per host from whichever option sets them; None if none does."""

    def sum_of(amounts: str) -> int:  # 2, or a100:2,v100:2
        return num_gpus(",".join(f"gpu:{amount}" for amount in amounts.split(",")))

    if "gpus-per-node" in found:
        return sum_of(found["gpus-per-node"])
    if any(gpus_of(found.get("gres", ""))):
        return num_gpus(found["gres"])
    if "gpus" in found:
        return math.ceil(sum_of(found["gpus"]) / nodes)
    return sum_of(found["gpus-per-task"]) * tasks if "gpus-per-task" in found else None
