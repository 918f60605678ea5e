"""Panels of a report: which metrics go into which chart."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fitb.tools.report.downsample import Floats, downsample, medians
from fitb.tools.report.gather import Curve, RunData

STUDENT, DISTILLED = "student/loss_mlm", "distill/total"
_LOG_RATIO = 8.0  # maximum / minimum from which an axis of positive values is logarithmic
_FEW = 24  # up to so many values are drawn as points


@dataclass(frozen=True)
class Series:
    """A line of a chart, downsampled.

    Args:
        label: text in the legend.
        colour: index of its colour and marker.
        x, y: (n,) float64; a NaN in y is a gap.
        dots: whether each value gets a marker.
    """

    label: str
    colour: int
    x: Floats
    y: Floats
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """A chart of series over steps, or of one quantity over another.

    Args:
        name: name of its file, unique on the page.
        label: title, with the unit.
        metrics: regular expression that matches the whole names of its metrics.
        log: logarithmic y axis; in SECTIONS, if values are positive and far apart.
        percent: show shares as per cent.
        zero: begin the y axis at 0.
        series: lines; empty in SECTIONS.
        facts: values in words, a sentence per series.
        marks: steps marked by a dotted line.
        named: show a legend even for a single series.
        x_label: label of the x axis.
        x_log: logarithmic x axis.
    """

    name: str
    label: str
    metrics: str = ""
    log: bool = False
    percent: bool = False
    zero: bool = False
    series: Sequence[Series] = ()
    facts: Sequence[str] = ()
    marks: Sequence[int] = ()
    named: bool = False
    x_label: str = "step"
    x_log: bool = False


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    title: str
    about: str
    panels: tuple[Panel, ...]


_RIGHT = r"student/top1|val/top[15]|val/span_em"
SECTIONS = (
    Section(
        "Student and distillation",
        "The student's loss on masked tokens, the distillation loss, and the student's accuracy.",
        (
            Panel("loss", "student and distillation loss", rf"({STUDENT}|{DISTILLED})", log=True),
            Panel("accuracy", "masked token accuracy", _RIGHT, percent=True, zero=True),
        ),
    ),
    Section(
        "Loss by term and by layer",
        "The weighted terms of the loss; then each term unweighted, by layer of the student.",
        (
            Panel("weighted", "weighted terms", r"weighted/(\w+)", log=True),
            Panel("student", "student loss (nats)", r"(student|val)/loss_mlm"),
            Panel("logits", "soft cross-entropy (nats)", r"distill/logits"),
            Panel("embedding", "embeddings, squared error", r"distill/embedding", log=True),
            Panel("hidden", "hidden states, squared error", r"distill/hidden/layer_\d+", log=True),
            Panel(
                "attention", "attention, squared error", r"distill/attention/layer_\d+", log=True
            ),
            Panel("relation", "relations, squared error", r"distill/relation/layer_\d+", log=True),
        ),
    ),
    Section(
        "Masks",
        "The share of tokens that is masked, and the number of masked positions per row.",
        (
            Panel("coverage", "masked share of tokens", r"mask/coverage", percent=True, zero=True),
            Panel("slots", "masked positions per row", r"mask/slots_per_row", zero=True),
            Panel(
                "slots-variance", "variance of masked positions", r"mask/\w+_variance", zero=True
            ),
        ),
    ),
    Section(
        "Throughput",
        "Tokens per second over all ranks; model TFLOP/s per device, and their share of its"
        " published peak (MFU) if that is known; the share of time spent waiting for rows.",
        (
            Panel("tokens-per-s", "tokens per second", r"perf/tokens_per_s", zero=True),
            Panel("tflops", "TFLOP/s per device", r"perf/tflops", zero=True),
            Panel("mfu", "model FLOPs utilisation", r"perf/mfu", percent=True, zero=True),
            Panel("data-wait", "waiting for rows", r"perf/data_wait_frac", percent=True, zero=True),
        ),
    ),
    Section(
        "Optimiser",
        "The learning rate; the gradient norm before clipping; in fp16 the loss scale, and the"
        " steps skipped because of an overflow.",
        (
            Panel("lr", "learning rate", r"optim/lr", zero=True),
            Panel("grad-norm", "gradient norm", r"optim/grad_norm", log=True, zero=True),
            Panel("loss-scale", "loss scale", r"optim/loss_scale", log=True, zero=True),
            Panel("skipped-steps", "skipped steps in total", r"optim/skipped_steps", zero=True),
            Panel("embeddings", "norm of input embeddings", r"embeddings/\w+", zero=True),
        ),
    ),
)
_WORDS = {
    STUDENT: "student loss, training",
    "val/loss_mlm": "student loss, validation",
    DISTILLED: "distillation loss",
    "student/top1": "training, top-1",
    "val/top1": "validation, top-1",
    "val/top5": "validation, top-5",
    "val/span_em": "validation, whole words",
    "weighted/mlm": "student loss",
    "embeddings/norm": "all other tokens",
    "embeddings/added_norm": "added tokens",
}
_TITLES = (STUDENT, "val/loss_mlm", DISTILLED)  # whose words are a title by themselves


def panels_of(section: Section, runs: Sequence[RunData]) -> list[Panel]:
    """Return a section's panels with their series.

    For one run a panel has a series per metric; for several there is a panel per metric with a
    series per run.
    """
    found = []
    for panel in section.panels:
        metrics = _matching(panel.metrics, runs)
        if len(runs) > 1:
            found += [_of_runs(panel, metric, runs, len(metrics) > 1) for metric in metrics]
        elif metrics:
            curves = [(words(name), i, runs[0].curves[name]) for i, name in enumerate(metrics)]
            found.append(_filled(panel, curves, marks=runs[0].resumed_at()))
    if section is SECTIONS[0] and (one_against_the_other := trajectory(runs)):
        found.insert(1, one_against_the_other)
    return found


def trajectory(runs: Sequence[RunData]) -> Panel | None:
    """Return a panel of the student's loss over the distillation loss; None if no run has both."""
    series = []
    for number, run in enumerate(runs):
        if STUDENT in run.curves and DISTILLED in run.curves:
            student, told = run.curves[STUDENT], run.curves[DISTILLED]
            _, at, of = np.intersect1d(student.steps, told.steps, return_indices=True)
            x, y = medians(told.values[of], student.values[at])
            series.append(Series(run.name, number, x, y, dots=True))
    if not any(len(each.x) for each in series):
        return None
    return Panel(
        name="student-distillation",
        label="student loss (nats) over distillation loss",
        series=series,
        x_label="distillation loss",
        x_log=_is_wide([each.x for each in series], ratio=4.0),
        named=len(runs) > 1,
        facts=["each point is the median of an equal part of training; the large one is the last"],
    )


def _matching(metrics: str, runs: Sequence[RunData]) -> list[str]:
    names = {name for run in runs for name in run.curves if re.fullmatch(metrics, name)}
    order = {name: place for place, name in enumerate(_WORDS)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), _natural(name)))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _of_runs(panel: Panel, metric: str, runs: Sequence[RunData], several: bool) -> Panel:
    """Fill a panel with a metric of all runs; if the panel has several, the metric names it."""
    curves = [
        (run.name, i, run.curves[metric]) for i, run in enumerate(runs) if metric in run.curves
    ]
    name = re.sub(r"[^\w-]+", "-", metric) if several else panel.name
    label = f"{panel.label.split(',')[0]}: {words(metric)}" if several else panel.label
    if metric in _TITLES:
        label = words(metric)
    return _filled(panel, curves, name=name, label=label, named=True)


def _filled(panel: Panel, curves: Sequence[tuple[str, int, Curve]], **changes: Any) -> Panel:
    """Return a panel with a series per (label, colour, curve)."""
    series = [
        Series(label, colour, *downsample(curve.steps, curve.values), len(curve.steps) <= _FEW)
        for label, colour, curve in curves
    ]
    return replace(
        panel,
        series=series,
        facts=[_fact(label, curve, panel.percent) for label, _, curve in curves],
        log=panel.log and _is_wide([each.y for each in series]),
        **changes,
    )


def words(metric: str) -> str:
    """Return the name of a metric in words."""
    return _WORDS.get(metric, metric.rpartition("/")[2].replace("_", " "))


def number(value: float | None, percent: bool = False) -> str:
    """Format a value with three or four digits; a dash for None."""
    if value is None or not math.isfinite(value):
        return "-"
    if percent:
        return f"{value:.2%}" if abs(value) < 0.1 else f"{value:.1%}"
    size = abs(value)
    if size >= 1e9 or 0 < size < 1:
        return f"{value:.4g}"
    return f"{value:,.0f}" if size >= 1000 or value == int(value) else f"{value:.3f}"


def _fact(label: str, curve: Curve, percent: bool) -> str:
    finite = np.flatnonzero(np.isfinite(curve.values))
    if not len(finite):
        return f"{label}: no finite value"
    values, steps = curve.values[finite], curve.steps[finite]
    (last, at), (low, low_at), (high, high_at) = (
        (number(values[place], percent), f"{steps[place]:,.0f}")
        for place in (-1, np.argmin(values), np.argmax(values))
    )
    return f"{label}: {last} at step {at}; lowest {low} at {low_at}, highest {high} at {high_at}"


def _is_wide(parts: Sequence[Floats], ratio: float = _LOG_RATIO) -> bool:
    values = np.concatenate(parts)
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > ratio * finite.min())
