"""`fitb sweep`: evaluate the finished runs of a sweep on the same masked rows, as one table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fitb.base.errors import ConfigError
from fitb.cluster.sweep import RECORD, recorded
from fitb.evaluation.evaluate_config import EvaluateConfig, MeasureConfig
from fitb.evaluation.folder import evaluate_all
from fitb.evaluation.printed import folder_text
from fitb.rundir import names
from fitb.rundir.status import status
from fitb.tools.status import state_in_words


@dataclass(frozen=True, kw_only=True)
class SweepConfig(MeasureConfig):
    """Evaluate the runs of a sweep; results are kept in FOLDER/evaluations.

    Args:
        folder: the --run_dir of the sweep.
    """

    folder: str = "runs/fitb-sweep"


def sweep_table(config: SweepConfig) -> dict[str, Any]:
    """Return what `evaluate_all` returns of the finished runs, and the state of all others.

    Returns: also `unfinished`, name -> state in words.
    Raises: ConfigError if the folder holds no sweep; see also `evaluate_all`.
    """
    folder = Path(config.folder)
    try:
        runs = [folder / name for name in recorded(folder)["folders"]]
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} is not the folder of a sweep: {folder / RECORD} is missing; give the"
            " --run_dir of slurm/sweep.sh or launch.sweep"
        ) from None
    unfinished = {}
    for run in runs:
        found = status(run) if run.exists() else None
        if found is None or found.state != "finished":
            unfinished[run.name] = state_in_words(found) if found else "not started"
    done = [str(run / names.EXPORT) for run in runs if run.name not in unfinished]
    if not done:
        return {"models": {}, "missing": [], "unfinished": unfinished}
    shared = {key.name: getattr(config, key.name) for key in fields(MeasureConfig)}
    wanted = EvaluateConfig(models=done, out=str(folder / "evaluations"), **shared)
    return evaluate_all(wanted, os.environ) | {"unfinished": unfinished}


def render(found: Mapping[str, Any]) -> str:
    """Render the table, a row per finished run, and the state of the others below."""
    parts = []
    if found["models"]:
        models = {Path(name).parent.name: result for name, result in found["models"].items()}
        parts.append(folder_text({"models": models, "missing": found["missing"]}))
    if found["unfinished"]:
        lines = [f"{name}: {state}" for name, state in found["unfinished"].items()]
        parts.append("\n".join(["not finished:", *lines]))
    return "\n\n".join(parts)
