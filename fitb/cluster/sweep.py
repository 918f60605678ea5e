"""Sweeps: a run for each combination of settings, in a folder of its own below one folder.

    --grid.optim.lr '[1e-4, 3e-4]' --grid.objective.hidden '[0, 1]'      all four
    --random 8 --grid.optim.lr '{low: 1e-5, high: 1e-3, log: true}'      eight drawn at random

`python -m fitb.cluster.sweep INDEX [flags]` prints the flags of `fitb train` of the member of this
index, quoted for a shell.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fitb.base.errors import ConfigError, FitbError
from fitb.base.fsio import read_json, write_json
from fitb.cluster.slurm import default_run_dir

GRID = "--grid."
RECORD = "sweep.json"
_LONGEST = 60  # characters of the settings in the name of a folder
_OWN = ("run_dir", "random", "random_seed")


@dataclass(frozen=True)
class Sweep:
    """The members of a sweep.

    Args:
        folder: parent of the run folders.
        members: key -> value, as words of the command line, of each member.
        flags: flags of `fitb train` that all members share.
    """

    folder: Path
    members: tuple[dict[str, str], ...]
    flags: tuple[str, ...]

    def run_dir(self, index: int) -> Path:
        """Return the run folder of a member, named by its index and its settings."""
        short = {key: key.rpartition(".")[2] for key in self.members[index]}
        twice = len(set(short.values())) < len(short)
        parts = [
            f"{key if twice else short[key]}={value}" for key, value in self.members[index].items()
        ]
        settings = re.sub(r"[^\w.=+-]+", "_", "-".join(parts))[:_LONGEST]
        return self.folder / f"{index:03d}-{settings}"

    def words(self, index: int) -> list[str]:
        """Return the flags of `fitb train` of a member.

        Raises: ConfigError if there is none of this index.
        """
        if not 0 <= index < len(self.members):
            raise ConfigError(
                f"member {index} of a sweep of {len(self.members)}: expected"
                f" --array=0-{len(self.members) - 1}, or a part of it"
            )
        own = {"run_dir": str(self.run_dir(index)), "track.group": self.folder.name}
        words = [w for key, value in own.items() for w in (f"--{key}", value)]
        words += self.flags  # which may name another group
        return words + [
            w for key, value in self.members[index].items() for w in (f"--{key}", value)
        ]

    def record(self) -> None:
        """Write the members into the folder.

        Raises: ConfigError if it holds another sweep.
        """
        path = self.folder / RECORD
        own = {"members": list(self.members), "folders": self.names()}
        with contextlib.suppress(FileNotFoundError):
            if (there := recorded(self.folder)) != own:
                raise ConfigError(
                    f"{path} is of another sweep, of {len(there['members'])} members; repeat its"
                    " flags, or choose another --run_dir"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, own)

    def names(self) -> list[str]:
        """Return the name of each member's folder."""
        return [self.run_dir(index).name for index in range(len(self.members))]


def recorded(folder: Path) -> dict[str, Any]:
    """Return `members` and `folders` of the sweep in a folder.

    Raises: FileNotFoundError; ConfigError if its record cannot be read.
    """
    try:
        found: dict[str, Any] = read_json(folder / RECORD, "members", "folders")
        return found
    except ValueError as error:
        raise ConfigError(f"{error}: restore it, or choose another folder") from error


def plan_sweep(words: Sequence[str], job_name: str) -> Sweep:
    """Return the sweep that a command line describes.

    Args:
        words: --grid.KEY VALUES, --random N, --random_seed N, --run_dir FOLDER; all others are
            passed on.
        job_name: name of the job, from which the folder is named without --run_dir.
    Raises: ConfigError for values that are no list, or no range with --random; or without any.
    """
    given, flags = _split(words)
    grid = {k.removeprefix(GRID[2:]): _values(k, v) for k, v in given.items() if k not in _OWN}
    if not grid:
        raise ConfigError(f"no setting to sweep: give {GRID}KEY '[VALUE, ...]' at least once")
    folder = Path(given.get("run_dir") or default_run_dir(job_name))
    if "random" in given:
        draws, seed = _whole("random", given), _whole("random_seed", {"random_seed": "0", **given})
        members = [_drawn(grid, seed, index) for index in range(draws)]
    else:
        ranges = [key for key, values in grid.items() if isinstance(values, Mapping)]
        if ranges:
            raise ConfigError(f"{GRID}{ranges[0]} is a range; expected a list, or --random N")
        members = [dict(zip(grid, each, strict=True)) for each in itertools.product(*grid.values())]
    return Sweep(folder, tuple(_as_words(member) for member in members), tuple(flags))


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the sweep's own flags with their values, and all other words."""
    given: dict[str, str] = {}
    others, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word[2:].partition("=")
        if not (word.startswith(GRID) or (word.startswith("--") and name in _OWN)):
            others.append(word)
            continue
        if not equals and not rest:
            raise ConfigError(f"{word} has no value; expected one after it")
        if name in given or name == "grid.run_dir":
            raise ConfigError(f"--{name} is given twice, or is what each run has for itself")
        given[name] = value if equals else rest.pop(0)
    return given, others


def _values(key: str, text: str) -> list[Any] | dict[str, Any]:
    """Parse the values of one setting: a list, or {low, high, log}."""
    with contextlib.suppress(yaml.YAMLError, TypeError, ValueError):
        found = yaml.safe_load(text)
        if isinstance(found, list) and found:
            return found
        if isinstance(found, dict) and {"low", "high"} <= found.keys() <= {"low", "high", "log"}:
            bounds = {end: float(found[end]) for end in ("low", "high")}
            least = 0 if found.get("log") else -math.inf
            if least < bounds["low"] < bounds["high"]:
                return {**bounds, "log": bool(found.get("log"))}
    raise ConfigError(
        f"--{key}={text}: expected a list such as '[1e-4, 3e-4]', or with --random a range such as"
        " '{low: 1e-5, high: 1e-3, log: true}'"
    )


def _whole(key: str, given: Mapping[str, str]) -> int:
    if not given[key].isdigit() or (key == "random" and int(given[key]) < 1):
        raise ConfigError(f"--{key}={given[key]}; expected a number of at least 1")
    return int(given[key])


def _drawn(grid: Mapping[str, Any], seed: int, index: int) -> dict[str, Any]:
    """Draw one member; each depends on its index alone, so more can be drawn later."""
    chance = random.Random(f"{seed}/{index}")
    drawn: dict[str, Any] = {}
    for key, values in grid.items():
        if isinstance(values, list):
            drawn[key] = chance.choice(values)
        elif values["log"]:
            between = chance.uniform(math.log(values["low"]), math.log(values["high"]))
            drawn[key] = f"{math.exp(between):.4g}"
        else:
            drawn[key] = f"{chance.uniform(values['low'], values['high']):.4g}"
    return drawn


def _as_words(member: Mapping[str, Any]) -> dict[str, str]:
    """Return each value as a word of the command line."""
    try:
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in member.items()}
    except TypeError as error:
        raise ConfigError(f"{member}: {error}; put the value into quotes") from None


def main(args: Sequence[str]) -> int:
    try:
        sweep = plan_sweep(args[1:], os.environ.get("SLURM_JOB_NAME", "fitb-sweep"))
        words = sweep.words(int(args[0]))
        sweep.record()
    except (IndexError, ValueError) as error:
        print(f"usage: python -m fitb.cluster.sweep INDEX [flags] ({error})", file=sys.stderr)
        return 2
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    print(shlex.join(words))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
