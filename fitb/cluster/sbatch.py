"""sbatch options, read as sbatch does: from #SBATCH lines, environment and command line."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

_LONG = {
    "A": "account",
    "C": "constraint",
    "G": "gpus",
    "H": "hold",
    "J": "job-name",
    "N": "nodes",
    "W": "wait",
    "a": "array",
    "c": "cpus-per-task",
    "d": "dependency",
    "n": "ntasks",
    "p": "partition",
    "q": "qos",
    "t": "time",
    "w": "nodelist",
    "x": "exclude",
}
# SBATCH_ variables that are not named after their option, and options without a variable.
_VARIABLES = {
    "ARRAY_INX": "array",
    "MEM_PER_NODE": "mem",
    "REQ_SWITCH": "switches",
    "TIMELIMIT": "time",
}
_WITHOUT_VARIABLE = ("nodes", "ntasks", "ntasks-per-node", "cpus-per-task")


@dataclass(frozen=True)
class Option:
    """One option of sbatch.

    Args:
        name: long name without dashes.
        value: value; None for a switch.
        source: where it was set: #SBATCH, the name of a variable, or sbatch (command line).
    """

    name: str
    value: str | None
    source: str


def read_options(
    script: str = "", env: Mapping[str, str] | None = None, words: Sequence[str] = ()
) -> dict[str, Option]:
    """Return the effective options by name; later sources override earlier ones.

    Args:
        script: text of a batch script.
        env: environment with SBATCH_ variables.
        words: command line.
    """
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    split = (shlex.split(line)[1:] for line in lines)
    of_script = (word for line in split for word in takewhile(lambda w: w[:1] != "#", line))
    found = [*_parsed(of_script, "#SBATCH"), *_variables(env or {}), *_parsed(words, "sbatch")]
    return {option.name: option for option in found}


def values(options: Mapping[str, Option]) -> dict[str, str]:
    """Return name -> value, without switches."""
    return {option.name: option.value for option in options.values() if option.value}


def number_of(given: Mapping[str, str], name: str) -> int:
    """Return the leading number of an option's value; 0 if there is none."""
    digits = re.match(r"\d+", given.get(name, ""))
    return int(digits[0]) if digits else 0


def hosts_and_tasks(given: Mapping[str, str]) -> tuple[int, int]:
    """Return the minimum number of hosts of a job, and the tasks on each.

    Args:
        given: name -> value, from `values`.
    """
    hosts = number_of(given, "nodes") or 1
    tasks = number_of(given, "ntasks-per-node") or math.ceil(number_of(given, "ntasks") / hosts)
    return hosts, tasks or 1


def _parsed(words: Iterable[str], source: str) -> Iterator[Option]:
    """Parse --name=value, --name value, -Nvalue and -N value."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
        elif word.startswith("-"):
            name, value = _LONG.get(word[1:2], word[1:2]), word[2:]
        else:
            continue
        if not value and "=" not in word and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
        yield Option(name, value or None, source)


def _variables(env: Mapping[str, str]) -> Iterator[Option]:
    for variable, value in sorted(env.items()):
        short = variable.removeprefix("SBATCH_")
        name = _VARIABLES.get(short, short.lower().replace("_", "-"))
        if short != variable and name not in _WITHOUT_VARIABLE:
            yield Option(name, value or None, variable)
