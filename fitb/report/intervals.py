"""Models side by side: a point for each on its 95 % interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitb.report.charts import LEFT, above, colour, frame, plain_ticks, shortened
from fitb.report.evaluations import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = ("top1", "loss", "span_em")  # metrics with a chart
METRIC_LABELS = {
    "top1": "masked tokens right",
    "loss": "loss (nats per slot)",
    "span_em": "whole masked words right",
}


def draw_table(table: Table, metric: str, width: float) -> Figure:
    """Draw a metric of each model of a table as a point on its 95 % interval."""
    rows = [row for row in table.rows if metric in row.metrics]
    figure, axes = frame(width, 14 + 18.0 * len(rows), left=LEFT + 74)
    percent = metric not in ("loss", "ppl", "kl")
    for place, row in enumerate(rows):
        found = row.metrics[metric]
        if found.value is None:
            continue
        shade = colour(0 if row.is_run else 6)
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [place, place], color=shade, linewidth=2.0)
        axes.plot([found.value], [place], color=shade, marker="o" if row.is_run else "s")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [shortened(row.label, 21) for row in rows])
    axes.tick_params(axis="y", labelsize=8.5, pad=4)
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    axes.margins(x=0.06)
    plain_ticks(axes.xaxis, percent)
    above(figure, METRIC_LABELS[metric], [])
    return figure
