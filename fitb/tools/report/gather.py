"""Reading of a run's files into plain values; missing, torn or damaged files become notes."""

from __future__ import annotations

import datetime
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fitb.base.errors import ConfigError, DataError
from fitb.base.fsio import is_torn, read_json, read_records
from fitb.base.redact import redacted
from fitb.cluster.slurm import reported_state
from fitb.config.yaml import flatten
from fitb.rundir import names
from fitb.rundir.checkpoints import last_committed_step
from fitb.rundir.events import read_events
from fitb.rundir.history import Attempt, attempts_of
from fitb.rundir.names import STEP
from fitb.rundir.status import Status, status
from fitb.tools.report.downsample import Floats

_LARGEST = 2**53  # largest step that float64 represents exactly
BEYOND = 1e100  # an axis of such values overflows


@dataclass(frozen=True)
class Curve:
    """A metric over steps.

    Args:
        steps: (N,) float64, whole numbers.
        values: (N,) float64; NaN where no finite number was logged.
    """

    steps: Floats
    values: Floats


@dataclass(frozen=True)
class RunData:
    """Content of a run's folder.

    Args:
        path: folder of the run.
        name: short name, unique on the page.
        curves: metric -> curve, in the order of first appearance.
        num_logged: number of logged steps.
        seen: time of the last write to metrics.jsonl; None if no step is logged.
        attempts: attempts, oldest first.
        status: status of the run; None if it cannot be read.
        config: dotted key -> value; empty if it cannot be read.
        config_text: text of config.yaml.
        provenance: an entry per attempt.
        checkpoint: manifest of the newest checkpoint; empty if there is none.
        notes: what is missing or damaged, a sentence each.
    """

    path: Path
    name: str
    curves: Mapping[str, Curve] = field(default_factory=dict)
    num_logged: int = 0
    seen: datetime.datetime | None = None
    attempts: Sequence[Attempt] = ()
    status: Status | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    provenance: Sequence[Mapping[str, Any]] = ()
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def last(self, metric: str) -> float | None:
        """Return the last finite value of a metric; None if there is none."""
        finite = self._finite(metric)
        return float(finite[-1]) if len(finite) else None

    def median(self, metric: str) -> float | None:
        """Return the median of the finite values of a metric; None if there are none."""
        finite = self._finite(metric)
        return float(np.median(finite)) if len(finite) else None

    def _finite(self, metric: str) -> Floats:
        values = self.curves[metric].values if metric in self.curves else np.zeros(0)
        return values[np.isfinite(values)]

    def resumed_at(self) -> list[int]:
        """Return the steps at which an attempt resumed."""
        return sorted({a.first_step for a in self.attempts if a.first_step})


def gather(path: Path, name: str) -> RunData:
    """Read what a run has written so far.

    Raises: ConfigError if the folder is not a run's.
    """
    notes: list[str] = []
    found = _status(path, notes)
    attempts = attempts_of(read_events(path, notes.append))
    if not attempts:
        notes.append("No attempt is on record: events.jsonl holds none.")
    curves, num_logged = read_metrics(path / names.METRICS, notes)
    notes += [
        f"The last line of {file} is torn, and left out."
        for file in (names.EVENTS, names.METRICS)
        if is_torn(path / file)
    ]
    config, text = _config(path, notes)
    provenance = _json(path / names.PROVENANCE, list)
    if provenance is None:
        notes.append("Commit and versions are not known: provenance.json is missing or damaged.")
    newest = names.checkpoint(path, last_committed_step(path))
    return RunData(
        path=path,
        name=name,
        curves=curves,
        num_logged=num_logged,
        seen=_written(path / names.METRICS) if num_logged else None,
        attempts=attempts,
        status=found,
        config=config,
        config_text=text,
        provenance=[entry for entry in provenance or [] if isinstance(entry, dict)],
        checkpoint=_json(newest / names.MANIFEST, dict) or {},
        notes=notes,
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run: the shortest distinct end of its path.

    Raises: ConfigError if a folder is named twice.
    """
    full = [path.resolve() for path in paths]
    if len(set(full)) < len(full):
        twice = next(str(path) for path in full if full.count(path) > 1)
        raise ConfigError(f"runs names {twice} twice; name each run once")
    deepest = max(len(path.parts) for path in full)
    for parts in range(1, deepest + 1):
        ends = [printable("/".join(path.parts[-parts:])) for path in full]
        if len(set(ends)) == len(ends):
            return ends
    return [f"{number} {end}" for number, end in enumerate(ends, 1)]


def printable(text: object) -> str:
    """Return a text on one line, with control characters replaced."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))


def without_secrets(value: object, lines: bool = False) -> str:
    """Return a value of a configuration as in YAML, without the secrets of a URL."""
    plain = {None: "null", True: "true", False: "false"}
    shown = plain[value] if value is None or isinstance(value, bool) else str(value)
    return redacted(shown if lines else printable(shown))


def read_metrics(path: Path, notes: list[str]) -> tuple[dict[str, Curve], int]:
    """Return the curves of metrics.jsonl and the number of logged steps; append notes."""
    steps: dict[str, array[float]] = {}
    values: dict[str, array[float]] = {}
    num_records = num_broken = 0
    for record in read_records(path, tell=notes.append):
        step = record.get(STEP)
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= _LARGEST:
            continue
        num_records += 1
        for name, value in record.items():
            if name == STEP or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            number = _float(value)
            num_broken += math.isnan(number)
            steps.setdefault(name, array("d")).append(step)
            values.setdefault(name, array("d")).append(number)
    if not num_records:
        notes.append("Nothing is logged yet: metrics.jsonl holds no step.")
    if num_broken:
        notes.append(f"{num_broken:,} logged values are not finite; charts have gaps there.")
    curves = {name: Curve(np.array(steps[name]), np.array(values[name])) for name in values}
    return curves, num_records


def differing(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Return the configuration keys whose values differ -> the value of every run.

    A missing key counts as "absent". `run_dir`, and runs without a configuration, are ignored.
    """
    known = [run.config for run in runs if run.config]
    keys = dict.fromkeys(key for config in known for key in config if key != "run_dir")
    return {
        key: [run.config.get(key, "absent") if run.config else "?" for run in runs]
        for key in keys
        if len({json.dumps(config.get(key, "absent"), default=str) for config in known}) > 1
    }


def _written(path: Path) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.timezone.utc)


def _float(value: int | float) -> float:
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if abs(number) < BEYOND else math.nan


def _status(path: Path, notes: list[str]) -> Status | None:
    try:  # `gather` reads the events too, and notes what is damaged
        found = status(path, job_state=reported_state, tell=lambda _: None)
    except (DataError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        found = None
    if found is None or not (
        all(type(n) in (int, type(None)) for n in (found.step, found.steps, found.best_step))
        and type(found.best_loss) in (int, float, type(None))
    ):
        notes.append("The status is unknown: a file is damaged.")
        return None
    return found


def _config(path: Path, notes: list[str]) -> tuple[dict[str, Any], str]:
    try:
        text = (path / names.CONFIG).read_text(encoding="utf-8")
        found = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        found, text = None, ""
    if not isinstance(found, dict):
        notes.append("There is no config.yaml that can be read.")
        return {}, ""
    return flatten(found), text


def _json(path: Path, kind: type) -> Any:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, kind) else None
