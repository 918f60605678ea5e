"""Timeline of attempts: steps over time, and a bar per attempt that shows how it ended."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fitb.base.errors import FINISHED, RESUME
from fitb.rundir.events import when
from fitb.rundir.history import Attempt
from fitb.tools.report.charts import (
    LINE,
    PALETTE,
    PAPER,
    SOFT,
    add_title,
    new_figure,
    set_ticks,
    shortened,
)
from fitb.tools.report.gather import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, int]]  # of an attempt: seconds, step

ENDS = {  # how an attempt ended -> colour of its bar, of its edge, hatch
    "finished": (SOFT, SOFT, ""),
    "saved and stopped": (LINE, SOFT, ""),
    "failed": (PAPER, PALETTE[1], "//////"),
    "end unknown": (PAPER, SOFT, "...."),
}
_UNITS = ((172_800, 86_400, "days"), (7200, 3600, "hours"), (300, 60, "minutes"), (0, 1, "seconds"))


def end_of(attempt: Attempt) -> str:
    """Return the key of ENDS that says how an attempt ended."""
    if attempt.exit_code is None:
        return "end unknown"
    if attempt.exit_code == FINISHED:
        return "finished"
    return "saved and stopped" if attempt.exit_code == RESUME else "failed"


def points_of(attempt: Attempt, begin: datetime.datetime) -> Points:
    """Return the known (seconds since `begin`, step) of an attempt, in order of time."""
    moments = []
    if attempt.began:
        moments.append((attempt.began, attempt.first_step))
        if attempt.start_s:
            waited_s = sum(attempt.start_s.values()) - attempt.start_s.get("imports", 0.0)
            first = attempt.began + datetime.timedelta(seconds=max(0.0, waited_s))
            moments.append((first, attempt.first_step))
    for save in attempt.saves:
        saved = when(save)
        if saved and isinstance(save.get("step"), int):
            moments.append((saved, save["step"]))
    if attempt.ended:
        moments.append((attempt.ended, attempt.last_step))
    return sorted(((moment - begin).total_seconds(), step) for moment, step in moments)


def draw_attempts(runs: Sequence[RunData], width: float) -> Figure:
    """Draw steps over time since the begin of each run, and below a bar per attempt."""
    from matplotlib.patches import Patch

    found = [list(timed(run)) for run in runs]
    longest = max((points[-1][0] for each in found for _, points in each), default=0.0)
    size, unit = next((size, unit) for least, size, unit in _UNITS if longest >= least)
    heights = [150.0, 8 + 20.0 * len(runs)]
    figure = new_figure(width, sum(heights) + 60)
    figure.set_layout_engine("constrained", h_pad=0.02, hspace=0.0)
    axes, lanes = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    for number, attempts in enumerate(found):
        for attempt, points in attempts:
            _draw_attempt(
                axes, lanes, attempt, [(time / size, step) for time, step in points], number
            )
    axes.set_xlim(0, longest / size * 1.01 or 1)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", length=0)
    axes.spines["bottom"].set_visible(False)
    set_ticks(axes.yaxis)
    set_ticks(axes.xaxis)
    lanes.grid(False)
    lanes.set_ylim(len(runs) - 0.4, -0.6)
    names = [shortened(run.name, 14) for run in runs] if len(runs) > 1 else []
    lanes.set_yticks(range(len(names)), names)
    for number, label in enumerate(lanes.get_yticklabels()):
        label.set_color(f"C{number}")
    lanes.set_xlabel(f"{unit} since the first attempt began")
    kinds = [kind for kind in ENDS if any(end_of(a) == kind for each in found for a, _ in each)]
    handles = [Patch(facecolor=ENDS[k][0], edgecolor=ENDS[k][1], hatch=ENDS[k][2]) for k in kinds]
    add_title(figure, "steps done, and attempts", handles, kinds)
    return figure


def timed(run: RunData) -> Iterator[tuple[Attempt, Points]]:
    """Yield each attempt that has points, with them, in seconds since the first attempt began."""
    begin = min((a.began for a in run.attempts if a.began), default=None)
    if begin is None:
        return
    for attempt in run.attempts:
        points = points_of(attempt, begin)
        if points and attempt is run.attempts[-1] and attempt.ended is None and run.seen:
            # An attempt that still runs has come as far as is logged.
            time_s = (run.seen - begin).total_seconds()
            step = int(max(curve.steps[-1] for curve in run.curves.values()))
            if time_s > points[-1][0] and step >= points[-1][1]:
                points.append((time_s, step))
        if points:
            yield attempt, points


def _draw_attempt(axes: Axes, lanes: Axes, attempt: Attempt, points: Points, number: int) -> None:
    """Draw the steps of an attempt, a dot per save, and its bar.

    Args:
        points: points of the attempt, in the unit of the axis.
        number: number of its run, which gives colour and lane.
    """
    (begin, _), (end, _) = points[0], points[-1]
    axes.plot(*zip(*points, strict=True), color=f"C{number}", linewidth=1.6)
    steps = {save.get("step") for save in attempt.saves}
    dots = [(time, step) for time, step in points if step in steps]
    x, y = [time for time, _ in dots], [step for _, step in dots]
    axes.plot(x, y, "o", color=f"C{number}", markersize=3.6, clip_on=False, in_layout=False)
    face, edge, hatch = ENDS[end_of(attempt)]
    style: dict[str, Any] = {"facecolor": face, "edgecolor": edge, "hatch": hatch, "linewidth": 0.8}
    lanes.barh(number, max(end - begin, 1e-9), left=begin, height=0.62, **style)
