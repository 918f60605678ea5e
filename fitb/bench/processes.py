"""A benchmark in several processes: those that a launcher started, or some of our own."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitb.cluster.local import LocalRun
from fitb.config.yaml import to_yaml
from fitb.errors import SystemFault
from fitb.world import World

_TIMEOUT_S = 3600.0


def alone_or_in(
    config: Any, name: str, processes: int, work: Callable[[Any, World], dict[str, Any]]
) -> dict[str, Any]:
    """Do the work in this process, or start `fitb bench NAME` in several and return rank 0's row.

    Args:
        config: the dataclass of the benchmark, with `processes` and `json` fields.
        work: from the configuration and this process's place to a row.
    Returns: nothing on ranks other than 0.
    Raises: SystemFault where one of the processes fails.
    """
    world = World.from_env(os.environ)
    if world.size > 1 or processes == 1:
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
        raise SystemFault(
            f"`fitb bench {name}` in {processes} processes ended with {code}: {said[-1:]}"
        )
    found: dict[str, Any] = json.loads(rows[-1])
    return found
