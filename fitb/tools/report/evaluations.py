"""Tables from the files of `fitb evaluate` and `fitb compare`: one for the same rows and masks."""

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
from fitb.tools.report.gather import RunData, printable

FOLDER = "evaluation"  # in a run's folder
SHARES = ("top1", "top5", "span_em", "span_f1", "ece", "agreement")  # shown in per cent
_BEYOND = 1e100  # an axis of such values overflows
_MOST_FILES = 200  # in one folder: a table of more is no table


@dataclass(frozen=True)
class Value:
    """A number with its 95 % interval; None is no number, as an infinite perplexity is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """A model on a set.

    Args:
        label: for people.
        source: where the model came from.
        num_parameters: None where the file does not say.
        metrics: in the order of METRICS.
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
        about: the rows and masks, in a sentence.
        rows: each model once, what was evaluated first.
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
        title: names both.
        about: the rows and masks, in a sentence.
        rows: (metric, value of the first, of the second, their difference, p-value); only the
            difference has an interval.
    """

    title: str
    about: str
    rows: Sequence[tuple[str, Value, Value, Value, float | None]]


@dataclass(frozen=True)
class Evaluations:
    """The tables of all files, and a sentence for each file that has none."""

    tables: Sequence[Table] = ()
    paired: Sequence[PairedTable] = ()
    notes: Sequence[str] = ()


def read_evaluations(runs: Sequence[RunData], named: Iterable[str]) -> Evaluations:
    """Read RUN/evaluation/*.json of every run, then the named files and folders.

    Raises: ConfigError where a named file or folder is not there.
    """
    notes: list[str] = []
    labels = {str((run.path / "export").resolve()): run.name for run in runs}
    labels |= {str(run.path.resolve()): run.name for run in runs}
    tables: dict[str, Table] = {}
    paired: list[PairedTable] = []
    for path in _files(runs, named, notes):
        try:
            found = read_json(path)
            if not _read(found, labels, tables, paired):
                notes.append(f"{printable(path.name)} holds no evaluation, and is left out.")
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError):
            notes.append(f"{printable(path.name)} cannot be read as an evaluation.")
    ordered = [replace(table, rows=_ordered(table.rows)) for table in tables.values()]
    return Evaluations(ordered, paired, notes)


def _files(runs: Sequence[RunData], named: Iterable[str], notes: list[str]) -> Iterator[Path]:
    folders = [run.path / FOLDER for run in runs]
    paths = [Path(name) for name in named]
    for path in paths:
        if not path.exists():
            raise ConfigError(
                f"evaluations names {path}, which is not there; give a file of `fitb evaluate"
                " --json` or `fitb compare --json`, or a folder of such"
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
    found: Any,
    labels: Mapping[str, str],
    tables: dict[str, Table],
    paired: list[PairedTable],
) -> bool:
    """Add what a file holds to the tables; False where it holds nothing."""
    read = False
    for name, each in found["sets"].items():
        about = _about(each, found)
        if "differences" in each:
            first, second = (_label(found["models"][role]["source"], labels) for role in "AB")
            title = f"{first} (A) and {second} (B), {printable(name)}"
            paired.append(PairedTable(title, about, list(_differences(each["differences"]))))
            read = True
        elif "models" in each:
            table = tables.setdefault(_key(name, each, found), Table(printable(name), about, []))
            table.rows.extend(row for row in _rows(each, found, labels) if row not in table.rows)
            read = True
    return read


def _key(name: str, each: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Name all that makes numbers comparable: the rows and how they are masked."""
    parts = [each[part] for part in ("fingerprint", "split", "num_rows", "num_slots")]
    parts.append("num_documents" in each)  # or intervals are over rows
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
    """Put what was evaluated first; a baseline that was evaluated too is not shown again."""
    models = [row for row in rows if row.is_run]
    sources = {row.source for row in models}
    return models + [row for row in rows if not row.is_run and row.source not in sources]


def _label(source: str, labels: Mapping[str, str]) -> str:
    """Call a model by its run where it is one of the page's, else by the end of its path."""
    path = Path(source)
    known = labels.get(str(path.resolve()))
    if known:
        return known
    parts = [part for part in path.parts if part not in ("/", "export", "checkpoints")]
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
    if value is not None and (type(value) not in (int, float) or not abs(value) < _BEYOND):
        raise ValueError("no number of an evaluation")
    return None if value is None else float(value)
