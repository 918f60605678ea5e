"""What a job of slurm/distill.sh asks of sbatch, however it is written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fitb.base.errors import ConfigError
from fitb.cluster import slurm_config
from fitb.cluster.sbatch import hosts_and_tasks, number_of, read_options, values
from fitb.tools.doctor.check import Check

_SLICE = re.compile(r"\d+g\.\d+gb.*")  # of MIG: 1g.10gb


@dataclass(frozen=True)
class JobRequest:
    """What a job of slurm/distill.sh asks for, each per host where it is not the hosts."""

    nodes: int = 1
    tasks: int = 1
    gpus: int = 0
    cpus: int = 1
    partition: str | None = None


def gpus_of(gres: str) -> Iterator[tuple[str, int]]:
    """Yield kind and number of the GPUs of generic resources such as gpu:a100:4(S:0-1),tmp:1."""
    for one in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *words = one.split(":")
        if name == "gpu":
            number = int(words.pop()) if words and words[-1].isdigit() else 1
            yield words[0] if words else "", number


def num_gpus(gres: str) -> int:
    """Return the GPUs of generic resources; slices of MIG count where nothing else is there."""
    whole = [number for kind, number in gpus_of(gres) if not _SLICE.fullmatch(kind)]
    return sum(whole or [number for _, number in gpus_of(gres)])


def gpus_option(gres: str) -> str:
    """Return what --gpus-per-node is for whole GPUs where slices are beside them; else nothing."""
    found = list(gpus_of(gres))
    whole = [(kind, number) for kind, number in found if not _SLICE.fullmatch(kind)]
    if whole in ([], found):
        return ""
    return ",".join(f"{kind}:{number}" for kind, number in whole)


def request_of(script: str, words: Sequence[str], env: Mapping[str, str]) -> JobRequest:
    """Return what sbatch would ask for.

    Args:
        script: text; its #SBATCH lines give way to the environment, and that to the words.
        words: options of sbatch.
    """
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
    """Say whether a job has time before it is told to leave."""
    found, name = values(read_options(script, env, words)), "time limit"
    try:
        why = slurm_config.leaves_at_once(found.get("time"), found.get("signal"))
    except ConfigError as error:
        yield Check("bad", name, str(error), "fitb doctor --sbatch=--time=04:00:00 ...")
        return
    if why:
        found_why, _, fix = why.rpartition("; ")
        yield Check("warn", name, found_why, fix)


def _gpus(found: Mapping[str, str], nodes: int, tasks: int) -> int | None:
    """Return the GPUs of a host, by whichever option says it; None where none does."""

    def sum_of(amounts: str) -> int:  # 2, or a100:2,v100:2
        return num_gpus(",".join(f"gpu:{amount}" for amount in amounts.split(",")))

    if "gpus-per-node" in found:
        return sum_of(found["gpus-per-node"])
    if any(gpus_of(found.get("gres", ""))):
        return num_gpus(found["gres"])
    if "gpus" in found:
        return math.ceil(sum_of(found["gpus"]) / nodes)
    return sum_of(found["gpus-per-task"]) * tasks if "gpus-per-task" in found else None
