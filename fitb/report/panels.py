"""Which charts a page has: metrics by the names of docs/design.md, a panel for each question."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fitb.report.gather import Curve, Run
from fitb.report.thin import Floats, medians, thinned

STUDENT, DISTILLED = "student/loss_mlm", "distill/total"
_LOG_RATIO = 8.0  # largest over least value from which an axis of positive values is logarithmic


@dataclass(frozen=True)
class Ask:
    """A question of a page, and the metrics that answer it.

    Args:
        name: of the chart's file.
        label: of the vertical axis, with its unit.
        metrics: regular expression of the metrics' names, in full.
        log: logarithmic where values are positive and far apart.
        percent: shares of 1 as per cent.
        zero: the axis begins at 0.
    """

    name: str
    label: str
    metrics: str
    log: bool = False
    percent: bool = False
    zero: bool = False


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    title: str
    about: str
    asks: tuple[Ask, ...]


_RIGHT = r"student/top1|val/top[15]|val/span_em"
SECTIONS = (
    Section(
        "Student and distillation",
        "The student's own loss on masked tokens, what it is told by the teacher, and how often its"
        " first answers are right.",
        (
            Ask("loss", "student and distillation loss", rf"({STUDENT}|{DISTILLED})", log=True),
            Ask("accuracy", "masked tokens right", _RIGHT, percent=True, zero=True),
        ),
    ),
    Section(
        "Loss by term and by layer",
        "What each term adds to the loss, weight included; then each by itself, unweighted, by"
        " layer of the student.",
        (
            Ask("weighted", "weighted terms", r"weighted/(\w+)", log=True),
            Ask("student", "student loss (nats)", r"(student|val)/loss_mlm"),
            Ask("logits", "soft cross-entropy (nats)", r"distill/logits"),
            Ask("embedding", "embeddings, squared error", r"distill/embedding", log=True),
            Ask("hidden", "hidden states, squared error", r"distill/hidden/layer_\d+", log=True),
            Ask("attention", "attention, squared error", r"distill/attention/layer_\d+", log=True),
        ),
    ),
    Section(
        "Masks",
        "What share of tokens is masked, and how many slots a row has.",
        (
            Ask("coverage", "masked share of tokens", r"mask/coverage", percent=True, zero=True),
            Ask("slots", "slots in a row", r"mask/slots_per_row", zero=True),
            Ask("slots-variance", "slots in a row, variance", r"mask/\w+_variance", zero=True),
        ),
    ),
    Section(
        "Throughput",
        "Tokens over all ranks; TFLOP/s of the model on each device, and their share of its"
        " published peak (MFU) where that is known; the share of time spent waiting for rows.",
        (
            Ask("tokens-per-s", "tokens per second", r"perf/tokens_per_s", zero=True),
            Ask("tflops", "TFLOP/s of a device", r"perf/tflops", zero=True),
            Ask("mfu", "model FLOPs utilisation", r"perf/mfu", percent=True, zero=True),
            Ask("data-wait", "waiting for rows", r"perf/data_wait_frac", percent=True, zero=True),
        ),
    ),
    Section(
        "Optimiser",
        "The learning rate; the gradient's norm before clipping; in fp16 the loss scale, and the"
        " steps that overflowed and were skipped.",
        (
            Ask("lr", "learning rate", r"optim/lr", zero=True),
            Ask("grad-norm", "gradient norm", r"optim/grad_norm", log=True, zero=True),
            Ask("loss-scale", "loss scale", r"optim/loss_scale", log=True, zero=True),
            Ask("skipped-steps", "skipped steps, in all", r"optim/skipped_steps", zero=True),
            Ask("embeddings", "norm of input embeddings", r"embeddings/\w+", zero=True),
        ),
    ),
)
_WORDS = {
    STUDENT: "student loss, training",
    "val/loss_mlm": "student loss, validation",
    DISTILLED: "distillation loss",
    "student/top1": "training, first answer",
    "val/top1": "validation, first answer",
    "val/top5": "validation, first five",
    "val/span_em": "validation, whole words",
    "weighted/mlm": "own loss",
    "embeddings/norm": "all other tokens",
    "embeddings/added_norm": "added tokens",
}
_TITLES = (STUDENT, "val/loss_mlm", DISTILLED)  # whose words say all by themselves


@dataclass(frozen=True)
class Line:
    """A line of a chart, thinned.

    Args:
        label: in the legend.
        colour: number of its colour and marker.
        x, y: (n,) float64; a NaN in y is a gap.
        dots: drawn as points joined, as few values far apart are.
    """

    label: str
    colour: int
    x: Floats
    y: Floats
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """A chart of lines.

    Args:
        name: of its file; unlike that of any other on the page.
        label: of the vertical axis.
        lines: at least one.
        log, percent, zero: as in Ask.
        x_label: of the horizontal axis.
        x_log: logarithmic.
        marks: steps at which a hairline stands.
        named: a single line is named in a legend too.
        facts: values in words, a sentence for each line.
    """

    name: str
    label: str
    lines: Sequence[Line]
    log: bool = False
    percent: bool = False
    zero: bool = False
    x_label: str = "step"
    x_log: bool = False
    marks: Sequence[int] = ()
    named: bool = False
    facts: Sequence[str] = field(default_factory=list)


def panels_of(section: Section, runs: Sequence[Run]) -> list[Panel]:
    """Return a section's panels: of one run a line for each metric, else a panel for each metric
    with a line for each run."""
    found = []
    for ask in section.asks:
        metrics = _matching(ask, runs)
        if len(runs) > 1:
            found += [_panel_of_runs(ask, metric, runs, len(metrics) > 1) for metric in metrics]
        elif metrics:
            found.append(_panel_of_metrics(ask, metrics, runs[0]))
    if section is SECTIONS[0] and (one_against_the_other := trajectory(runs)):
        found.insert(1, one_against_the_other)
    return found


def trajectory(runs: Sequence[Run]) -> Panel | None:
    """Return the student's loss against the distillation loss; None where no run has both."""
    lines = []
    for number, run in enumerate(runs):
        if STUDENT in run.curves and DISTILLED in run.curves:
            student, told = run.curves[STUDENT], run.curves[DISTILLED]
            _, at, of = np.intersect1d(student.steps, told.steps, return_indices=True)
            x, y = medians(told.values[of], student.values[at])
            lines.append(Line(run.name, number, x, y, dots=True))
    if not any(len(line.x) for line in lines):
        return None
    return Panel(
        name="student-distillation",
        label="student loss (nats) against distillation loss",
        lines=lines,
        x_label="distillation loss",
        x_log=_is_wide(np.concatenate([line.x for line in lines]), ratio=4.0),
        named=len(runs) > 1,
        facts=[
            "each point is the median of an equal stretch of training; the large one is its end"
        ],
    )


def _matching(ask: Ask, runs: Sequence[Run]) -> list[str]:
    names = {name for run in runs for name in run.curves if re.fullmatch(ask.metrics, name)}
    order = {name: place for place, name in enumerate(_WORDS)}
    return sorted(names, key=lambda name: (order.get(name, len(order)), _natural(name)))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _panel_of_metrics(ask: Ask, metrics: Sequence[str], run: Run) -> Panel:
    lines = [_line(words(name), i, run.curves[name]) for i, name in enumerate(metrics)]
    facts = [_fact(words(name), run.curves[name], ask.percent) for name in metrics]
    log = ask.log and _is_wide(np.concatenate([line.y for line in lines]))
    return Panel(
        ask.name, ask.label, lines, log, ask.percent, ask.zero, marks=run.resumed_at(), facts=facts
    )


def _panel_of_runs(ask: Ask, metric: str, runs: Sequence[Run], several: bool) -> Panel:
    having = [(i, run) for i, run in enumerate(runs) if metric in run.curves]
    lines = [_line(run.name, i, run.curves[metric]) for i, run in having]
    facts = [_fact(run.name, run.curves[metric], ask.percent) for _, run in having]
    log = ask.log and _is_wide(np.concatenate([line.y for line in lines]))
    name = re.sub(r"[^\w-]+", "-", metric) if several else ask.name
    label = f"{ask.label.split(',')[0]}: {words(metric)}" if several else ask.label
    if metric in _TITLES:
        label = words(metric)
    return Panel(name, label, lines, log, ask.percent, ask.zero, named=True, facts=facts)


def _line(label: str, colour: int, curve: Curve) -> Line:
    x, y = thinned(curve.steps, curve.values)
    return Line(label, colour, x, y, dots=len(curve.steps) <= 24)


def words(metric: str) -> str:
    """Call a metric in words."""
    return _WORDS.get(metric, metric.rpartition("/")[2].replace("_", " "))


def number(value: float | None, percent: bool = False) -> str:
    """Write a value in three or four places; a dash where there is none."""
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
    low, high, last = (
        finite[np.argmin(curve.values[finite])],
        finite[np.argmax(curve.values[finite])],
        finite[-1],
    )
    return (
        f"{label}: {number(curve.values[last], percent)} at step {curve.steps[last]:,.0f};"
        f" lowest {number(curve.values[low], percent)} at {curve.steps[low]:,.0f},"
        f" highest {number(curve.values[high], percent)} at {curve.steps[high]:,.0f}"
    )


def _is_wide(values: Floats, ratio: float = _LOG_RATIO) -> bool:
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > ratio * finite.min())
