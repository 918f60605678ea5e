"""`fitb report`: gather the runs' files, draw the charts, write the page."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fitb.base.errors import SystemFault
from fitb.base.templates import write_page
from fitb.tools.report.blanks import blanks_of
from fitb.tools.report.charts import (
    WIDE,
    WIDTH,
    Chart,
    check_matplotlib,
    draw_intervals,
    draw_panel,
    make_chart,
)
from fitb.tools.report.evaluations import Table, read_evaluations
from fitb.tools.report.gather import RunData, gather, names_of
from fitb.tools.report.panels import SECTIONS, panels_of
from fitb.tools.report.render import key_figures, render, state_of
from fitb.tools.report.report_config import ReportConfig
from fitb.tools.report.timeline import draw_attempts, end_of

_CHARTED = {  # metric of an evaluation -> title of its chart
    "top1": "masked token accuracy",
    "loss": "loss (nats per masked position)",
    "span_em": "whole-word accuracy",
}


def report(config: ReportConfig) -> dict[str, Any]:
    """Write the page, and PNGs if a folder for them is given.

    Returns: JSON-able: the page, its size, the PNGs, and for each run its name, state, key figures
        and what is missing.
    Raises: ConfigError if a folder is not a run's or matplotlib is missing; SystemFault if a file
        cannot be written.
    """
    check_matplotlib()
    paths = [Path(run) for run in config.runs]
    runs = [gather(path, name) for path, name in zip(paths, names_of(paths), strict=True)]
    evaluated, paired, notes = read_evaluations(runs, config.evaluations)
    blanks = [blanks_of(run, config.blanks, config.blank_rows, config.shards) for run in runs]
    png = _folder(config.png)
    sections = []
    for section in SECTIONS:
        charts = [
            make_chart(panel.name, panel.label, panel.facts, partial(draw_panel, panel), png=png)
            for panel in panels_of(section, runs)
        ]
        sections += [(section.title, section.about, charts)] if charts else []
    tables = [
        (table, list(_interval_charts(table, place, png)))
        for place, table in enumerate(evaluated, 1)
    ]
    attempts = _attempts_chart(runs, png)
    text = render(
        runs,
        datetime.datetime.now(datetime.timezone.utc),
        sections=sections,
        tables=tables,
        paired=paired,
        attempts=attempts,
        blanks=blanks,
        notes=notes,
    )
    page = Path(config.out or f"{config.runs[0]}/report.html")
    write_page(page, text)
    drawn = [chart for _, _, charts in sections for chart in charts]
    drawn += [chart for _, charts in tables for chart in charts]
    drawn += [attempts] if attempts else []
    return {
        "page": str(page),
        "bytes": len(text.encode()) + 1,
        "png": [str(png / f"{chart.name}.png") for chart in drawn] if png else [],
        "charts": [chart.name for chart in drawn],
        "runs": [_summary(run, each.skipped) for run, each in zip(runs, blanks, strict=True)],
        "notes": notes,
    }


def as_text(result: dict[str, Any]) -> str:
    """Render a result of `report` for people."""
    lines = []
    for run in result["runs"]:
        lines += [f"{run['name']}: {run['state']}", *(f"  {note}" for note in run["notes"])]
    lines += result["notes"]
    lines.append(f"{result['page']}: {len(result['charts'])} charts, {result['bytes']:,} bytes")
    if result["png"]:
        lines.append(f"{Path(result['png'][0]).parent}: {len(result['png'])} PNGs of 300 dpi")
    return "\n".join(lines)


def _summary(run: RunData, skipped: str) -> dict[str, Any]:
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
            f"cannot write into {name}: {error.strerror}; choose another folder for --png"
        ) from error
    return Path(name)


def _attempts_chart(runs: Sequence[RunData], png: Path | None) -> Chart | None:
    if not any(attempt.began for run in runs for attempt in run.attempts):
        return None
    facts = [
        f"{run.name}: attempt {a.number}, steps {a.first_step:,} to {a.last_step:,}, {end_of(a)}"
        for run in runs
        for a in run.attempts
    ]
    title, draw = "steps done, and attempts, over time", partial(draw_attempts, runs)
    return make_chart("attempts", title, facts, draw, png=png, widths=(WIDE, WIDTH))


def _interval_charts(table: Table, place: int, png: Path | None) -> Iterator[Chart]:
    for metric, title in _CHARTED.items():
        rows = [row for row in table.rows if metric in row.metrics]
        if not rows:
            continue
        facts = [
            f"{row.label}: {found.value:.4g}, 95 % interval {found.low:.4g} to {found.high:.4g}"
            for row in rows
            if None not in vars(found := row.metrics[metric]).values()
        ]
        name = f"evaluation-{place}-{metric.replace('_', '-')}"
        draw = partial(draw_intervals, rows, metric, title)
        yield make_chart(name, title, facts, draw, png=png)
