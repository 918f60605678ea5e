"""What a job of slurm/distill.sh asks of sbatch, however it is written."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fitb.cluster import site
from fitb.doctor.check import Check
from fitb.errors import ConfigError

_SLICE = re.compile(r"\d+g\.\d+gb.*")  # of MIG: 1g.10gb


@dataclass(frozen=True)
class Asked:
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


def asked_of(script: str, options: Sequence[str], env: Mapping[str, str]) -> Asked:
    """Return what sbatch would ask for.

    Args:
        script: text; its #SBATCH lines give way to the environment, and that to the options.
        options: of sbatch.
    """
    found = _read(script, options, env)
    few = re.match(r"\d+", found.nodes or "1")
    nodes = int(few[0]) if few else 1
    tasks = found.ntasks_per_node or 1
    if (own := _parsed(options)).ntasks and not own.ntasks_per_node:
        tasks = math.ceil(own.ntasks / nodes)
    gpus = _gpus(own, nodes, tasks)
    if gpus is None:
        gpus = _gpus(found, nodes, tasks) or 0
    return Asked(nodes, tasks, gpus, found.cpus_per_task or 1, found.partition)


def timing(script: str, options: Sequence[str], env: Mapping[str, str]) -> Iterator[Check]:
    """Say whether a job has time before it is told to leave."""
    found, name = _read(script, options, env), "time limit"
    try:
        why = site.leaves_at_once(found.time, found.signal)
    except ConfigError as error:
        yield Check("bad", name, str(error), "fitb doctor --sbatch=--time=04:00:00 ...")
        return
    if why:
        found_why, _, fix = why.rpartition("; ")
        yield Check("warn", name, found_why, fix)


def _read(script: str, options: Sequence[str], env: Mapping[str, str]) -> argparse.Namespace:
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    words = [word for line in lines for word in shlex.split(line)[1:]]
    for flag in ("--partition", "--gpus-per-node", "--gpus", "--gres", "--signal"):
        variable = f"SBATCH_{flag[2:].upper().replace('-', '_')}"
        words += [f"{flag}={env[variable]}"] if env.get(variable) else []
    words += [f"--time={env['SBATCH_TIMELIMIT']}"] if env.get("SBATCH_TIMELIMIT") else []
    return _parsed([*words, *options])


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for flags, kind in (
        (("--nodes", "-N"), str),
        (("--ntasks", "-n"), int),
        (("--ntasks-per-node",), int),
        (("--gpus", "-G"), str),
        (("--gpus-per-node",), str),
        (("--gpus-per-task",), str),
        (("--gres",), str),
        (("--cpus-per-task", "-c"), int),
        (("--partition", "-p"), str),
        (("--time", "-t"), str),
        (("--signal",), str),
    ):
        parser.add_argument(*flags, type=kind)
    return parser.parse_known_args(words)[0]


def _gpus(found: argparse.Namespace, nodes: int, tasks: int) -> int | None:
    """Return the GPUs of a host, by whichever option says it; None where none does."""

    def sum_of(amounts: str) -> int:  # 2, or a100:2,v100:2
        return num_gpus(",".join(f"gpu:{amount}" for amount in amounts.split(",")))

    if found.gpus_per_node is not None:
        return sum_of(found.gpus_per_node)
    if found.gres and any(gpus_of(found.gres)):
        return num_gpus(found.gres)
    if found.gpus is not None:
        return math.ceil(sum_of(found.gpus) / nodes)
    return None if found.gpus_per_task is None else sum_of(found.gpus_per_task) * tasks
