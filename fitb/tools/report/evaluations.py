"""Tables from files of `fitb evaluate` and `fitb compare`, one for the same rows and masks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fitb.base.errors import ConfigError
from fitb.base.fsio import read_json
from fitb.evaluation.metrics import METRICS
from fitb.evaluation.printed import covered
from fitb.rundir import names
from fitb.tools.report.gather import BEYOND, RunData, printable

FOLDER = "evaluation"  # in a run's folder
SHARES = ("top1", "top5", "span_em", "span_f1", "ece", "agreement")  # shown in per cent
_MOST_FILES = 200  # per folder


@dataclass(frozen=True)
class Value:
    """A number with its 95 % interval; None where it is not finite."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """Metrics of a model on a set.

    Args:
        label: short name of the model.
        source: source of the model.
        num_parameters: number of parameters; None if unknown.
        metrics: metric -> value, in the order of METRICS.
        is_run: whether it is the evaluated model, not a baseline.
    """

    label: str
    source: str
    num_parameters: int | None
    metrics: Mapping[str, Value]
    is_run: bool


@dataclass(frozen=True)
class Table:
    """Models on the same rows under the same masks.

    Args:
        title: name of the set.
        about: rows and masks in a sentence.
        rows: a row per model, evaluated ones first.
    """

    title: str
    about: str
    rows: list[Row]

    def metrics(self) -> list[str]:
        """Return the metrics that any row has."""
        return [name for name in METRICS if any(name in row.metrics for row in self.rows)]


@dataclass(frozen=True)
class PairedTable:
    """Two models on the same rows.

    Args:
        title: names of both.
        about: rows and masks in a sentence.
        rows: (metric, value of A, value of B, their difference with its interval, p-value).
    """

    title: str
    about: str
    rows: Sequence[tuple[str, Value, Value, Value, float | None]]


def read_evaluations(
    runs: Sequence[RunData], named: Iterable[str]
) -> tuple[list[Table], list[PairedTable], list[str]]:
    """Read RUN/evaluation/*.json of every run, then the named files and folders.

    Returns: both kinds of tables, and a sentence for each file without any.
    Raises: ConfigError if a named file or folder does not exist.
    """
    notes: list[str] = []
    labels = {str((run.path / names.EXPORT).resolve()): run.name for run in runs}
    labels |= {str(run.path.resolve()): run.name for run in runs}
    tables: dict[str, Table] = {}
    paired: list[PairedTable] = []
    for path in _files(runs, named, notes):
        try:
            found = read_json(path)
            if not _read(found, labels, tables, paired):
                notes.append(f"{printable(path.name)} holds no evaluation.")
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError):
            notes.append(f"{printable(path.name)} cannot be read as an evaluation.")
    ordered = [replace(table, rows=_ordered(table.rows)) for table in tables.values()]
    return ordered, paired, notes


def _files(runs: Sequence[RunData], named: Iterable[str], notes: list[str]) -> Iterator[Path]:
    folders = [run.path / FOLDER for run in runs]
    paths = [Path(name) for name in named]
    for path in paths:
        if not path.exists():
            raise ConfigError(
                f"evaluations names {path}, which does not exist; give a file of `fitb evaluate"
                " --json` or `fitb compare --json`, or a folder of such files"
            )
    seen = set()
    for place in [*folders, *paths]:
        files = sorted(place.glob("*.json")) if place.is_dir() else [place] * place.is_file()
        if len(files) > _MOST_FILES:
            notes.append(
                f"{printable(place)} holds {len(files)} files; the first {_MOST_FILES} are read."
            )
        for file in files[:_MOST_FILES]:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _read(
    found: Any, labels: Mapping[str, str], tables: dict[str, Table], paired: list[PairedTable]
) -> bool:
    """Add the results in a file to the tables; return whether there are any."""
    sets = found["sets"]
    for name, each in sets.items():
        about = _about(each, found)
        if "differences" in each:
            first, second = (_label(found["models"][role]["source"], labels) for role in "AB")
            title = f"{first} (A) and {second} (B), {printable(name)}"
            paired.append(PairedTable(title, about, list(_differences(each["differences"]))))
        elif "models" in each:
            table = tables.setdefault(_key(name, each, found), Table(printable(name), about, []))
            table.rows.extend(row for row in _rows(each, found, labels) if row not in table.rows)
    return any("differences" in each or "models" in each for each in sets.values())


def _key(name: str, each: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return a key equal for comparable results: the same rows and masks."""
    parts = [each[part] for part in ("fingerprint", "split", "num_rows", "num_slots")]
    parts.append("num_documents" in each)  # older intervals are over rows
    return json.dumps([name, *parts, found["seed"], found["mask"]], sort_keys=True)


def _about(each: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    mask = found["mask"]
    return (
        f"{printable(each['split'])} split, shards {printable(each['fingerprint'])[:12]}:"
        f" {each['num_rows']:,} rows, {each['num_slots']:,} masked positions,"
        f" {each['num_words']:,} whole words; masks {printable(mask['strategy'])},"
        f" {mask['fraction']:.0%} of tokens, seed {int(found['seed'])}. {printable(covered(each))}"
    )


def _rows(
    each: Mapping[str, Any], found: Mapping[str, Any], labels: Mapping[str, str]
) -> Iterator[Row]:
    for role, numbers in each["models"].items():
        about = found["models"].get(role, {})
        source = printable(about.get("source", ""))
        metrics = {
            name: _value(numbers["metrics"][name]) for name in METRICS if name in numbers["metrics"]
        }
        label = _label(about["source"], labels) if role == "model" else printable(role)
        if role not in ("model", "unigram", "untrained") and source:
            known = _label(about["source"], labels)
            label = label if known == label else f"{label}: {known}"
        size = about.get("num_parameters")
        yield Row(label, source, size if type(size) is int else None, metrics, role == "model")


def _ordered(rows: list[Row]) -> list[Row]:
    """Put evaluated models first, and drop baselines that were evaluated too."""
    models = [row for row in rows if row.is_run]
    sources = {row.source for row in models}
    return models + [row for row in rows if not row.is_run and row.source not in sources]


def _label(source: str, labels: Mapping[str, str]) -> str:
    """Return the name of the model's run if it is on the page, else the end of its path."""
    path = Path(source)
    if known := labels.get(str(path.resolve())):
        return known
    parts = [part for part in path.parts if part not in ("/", names.EXPORT, names.CHECKPOINTS)]
    return printable("/".join(parts[-2:] if parts[-1:] and "step-" in parts[-1] else parts[-1:]))


def _differences(
    found: Mapping[str, Any],
) -> Iterator[tuple[str, Value, Value, Value, float | None]]:
    for name in METRICS:
        if each := found.get(name):
            first, second = (Value(_number(each[part])) for part in ("first", "second"))
            yield name, first, second, _value(each), _number(each["p"])


def _value(each: Mapping[str, Any]) -> Value:
    return Value(*(_number(each[part]) for part in ("value", "low", "high")))


def _number(value: Any) -> float | None:
    if value is not None and (type(value) not in (int, float) or not abs(value) < BEYOND):
        raise ValueError("not a finite number")
    return None if value is None else float(value)
