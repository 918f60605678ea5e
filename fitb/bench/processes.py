"""Run a benchmark on several ranks: those of a launcher, or local processes started here."""

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
    """Run `work` as one rank of a launcher, or start `fitb bench NAME` in local processes.

    Local processes get the malloc settings and thread counts of a training run
    (fitb.cluster.local).

    Args:
        config: configuration dataclass of the benchmark, with a `json` field.
        name: benchmark, as in `fitb bench NAME`.
        processes: number of local processes.
        work: measures on one rank; takes the configuration and the rank, returns the result.
    Returns: the result of rank 0; an empty dict on other ranks.
    Raises: the FitbError that belongs to the exit code of a process that failed.
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
