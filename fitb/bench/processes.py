"""Runs a benchmark in several ranks: those that a launcher started, or some of our own."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitb.base.errors import ConfigError, DataError, FitbError, SystemFault, TrainingError
from fitb.base.world import World
from fitb.cluster.local import LocalRun
from fitb.config.yaml import to_yaml

_TIMEOUT_S = 3600.0


def in_ranks(
    config: Any, name: str, processes: int, work: Callable[[Any, World], dict[str, Any]]
) -> dict[str, Any]:
    """Work as one of a launcher's processes, or start `fitb bench NAME` in some of our own.

    Ours are started as those of a training on this machine are: fitb.cluster.local says with what
    settings of malloc and how many threads.

    Args:
        config: the dataclass of the benchmark, with `processes` and `json` fields.
        work: from the configuration and this process's place to a row.
    Returns: the row of rank 0; nothing on other ranks.
    Raises: what the process that failed ended with, by its exit code.
    """
    world = World.from_env(os.environ)
    if world.size > 1 or "RANK" in os.environ:
        row = work(config, world)
        return row if world.is_main else {}
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as folder:
        path = Path(folder) / "bench.yaml"
        path.write_text(to_yaml(replace(config, json=True)))
        command = [sys.executable, "-m", "fitb", "bench", name, "--config", str(path)]
        with open(Path(folder) / "output", "w+b") as output:
            with LocalRun(command, processes, output=output) as run:
                code = run.wait(_TIMEOUT_S)
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
    rows = [line for line in said if line.startswith("{")]
    if code or not rows:
        kinds: dict[int, type[FitbError]] = {
            kind.exit_code: kind for kind in (ConfigError, DataError, TrainingError)
        }
        message = f"`fitb bench {name}` in {processes} processes ended with {code}: {said[-1:]}"
        raise kinds.get(code, SystemFault)(message)
    found: dict[str, Any] = json.loads(rows[-1])
    return found
