"""The road of `fitb report`: gather, draw, write."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fitb.errors import SystemFault
from fitb.inspect.page import put_page
from fitb.report import charts
from fitb.report.blanks import blanks_of
from fitb.report.charts import Chart
from fitb.report.config import ReportConfig
from fitb.report.evaluations import Table, read_evaluations
from fitb.report.gather import Run, gather, names_of
from fitb.report.intervals import METRIC_LABELS, SHOWN, draw_table
from fitb.report.page import Content, Part, key_figures, render, state_of
from fitb.report.panels import SECTIONS, panels_of
from fitb.report.timeline import draw_attempts, end_of


def report(config: ReportConfig) -> dict[str, Any]:
    """Write the page, and PNGs where they are asked for.

    Returns: JSON-able: the page, its bytes, the PNGs, and of each run its name, its state, what it
        is judged by and what is missing.
    Raises: ConfigError where a folder is no run's or matplotlib is missing; SystemFault where
        nothing can be written.
    """
    charts.check_matplotlib()
    paths = [Path(run) for run in config.runs]
    runs = [gather(path, name) for path, name in zip(paths, names_of(paths), strict=True)]
    evaluations = read_evaluations(runs, config.evaluations)
    blanks = [blanks_of(run, config.blanks, config.blank_rows, config.shards) for run in runs]
    png = _folder(config.png)
    content = Content(
        runs=runs,
        parts=list(_parts(runs, png)),
        attempts=_attempts(runs, png),
        evaluations=evaluations,
        evaluation_charts=[
            list(_evaluated(table, place, png)) for place, table in enumerate(evaluations.tables, 1)
        ],
        blanks=blanks,
        written=datetime.datetime.now(datetime.timezone.utc),
    )
    page = config.page()
    text = render(content)
    put_page(page, text)
    return {
        "page": str(page),
        "bytes": len(text.encode()) + 1,
        "png": [str(png / f"{chart.name}.png") for chart in _all(content)] if png else [],
        "charts": [chart.name for chart in _all(content)],
        "runs": [_summary(run, each.skipped) for run, each in zip(runs, blanks, strict=True)],
        "notes": list(evaluations.notes),
    }


def as_text(result: dict[str, Any]) -> str:
    """Render what `report` returned for people."""
    return "\n".join(_lines(result))


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for run in result["runs"]:
        yield f"{run['name']}: {run['state']}"
        yield from (f"  {note}" for note in run["notes"])
    yield from result["notes"]
    yield f"{result['page']}: {len(result['charts'])} charts, {result['bytes']:,} bytes"
    if result["png"]:
        yield f"{Path(result['png'][0]).parent}: {len(result['png'])} PNGs of 300 dpi"


def _summary(run: Run, skipped: str) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "name": run.name,
        "state": state_of(run),
        "logged_steps": run.num_logged,
        "figures": {what: value for what, value, _ in key_figures(run)},
        "notes": [*run.notes, *filter(None, [skipped])],
    }


def _folder(name: str | None) -> Path | None:
    if name is None:
        return None
    try:
        Path(name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemFault(
            f"cannot write into {name}: {error.strerror}; name a folder of yours with --png"
        ) from error
    return Path(name)


def _parts(runs: Sequence[Run], png: Path | None) -> Iterator[Part]:
    for section in SECTIONS:
        drawn = [
            charts.drawn(
                panel.name, panel.label, panel.facts, partial(charts.draw_panel, panel), png=png
            )
            for panel in panels_of(section, runs)
        ]
        if drawn:
            yield Part(section.title, section.about, drawn)


def _attempts(runs: Sequence[Run], png: Path | None) -> Chart | None:
    if not any(attempt.began for run in runs for attempt in run.attempts):
        return None
    facts = [
        f"{run.name}: attempt {attempt.number}, steps {attempt.first_step:,} to"
        f" {attempt.last_step:,}, {end_of(attempt)}"
        for run in runs
        for attempt in run.attempts
    ]
    return charts.drawn(
        "attempts",
        "steps done, and attempts, over time",
        facts,
        partial(draw_attempts, runs),
        png=png,
        widths=(charts.WIDE, charts.WIDTH),
    )


def _evaluated(table: Table, place: int, png: Path | None) -> Iterator[Chart]:
    for metric in SHOWN:
        if metric in table.metrics():
            label = METRIC_LABELS[metric]
            facts = [
                f"{row.label}: {row.metrics[metric].value:.4g}, 95 % interval"
                f" {row.metrics[metric].low:.4g} to {row.metrics[metric].high:.4g}"
                for row in table.rows
                if metric in row.metrics and None not in vars(row.metrics[metric]).values()
            ]
            yield charts.drawn(
                f"evaluation-{place}-{metric.replace('_', '-')}",
                label,
                facts,
                partial(draw_table, table, metric),
                png=png,
            )


def _all(content: Content) -> Iterator[Chart]:
    for part in content.parts:
        yield from part.charts
    for found in content.evaluation_charts:
        yield from found
    if content.attempts:
        yield content.attempts
