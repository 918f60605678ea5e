"""Run a benchmark on several ranks: those of a launcher, or local processes started here."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitb.base.errors import ConfigError, DataError, FitbError, SystemFault, TrainingError
from fitb.base.world import World
from fitb.cluster.local import LocalRun
from fitb.config.yaml import to_yaml

logger = logging.getLogger(__name__)

_TIMEOUT_S = 3600.0
_POLL_S = 0.5
SAYS = "bench: "  # before what a benchmark says of itself


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
            with LocalRun(command, processes, output=output) as run, _log_shown(output.name):
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


@contextlib.contextmanager
def _log_shown(path: str) -> Iterator[None]:
    """Log what a benchmark in another process says of itself, as it says it."""
    done = threading.Event()

    def follow() -> None:
        with open(path, errors="replace") as output:
            line, last = "", False
            while not last:
                last = done.wait(_POLL_S)
                while part := output.readline():
                    line += part
                    if line.endswith("\n"):
                        if SAYS in line:
                            logger.info("%s", line.partition(SAYS)[2].strip())
                        line = ""

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def say(message: str) -> None:
    """Log on rank 0 what a benchmark does; the process that started it shows the line."""
    logger.info("%s%s", SAYS, message)
