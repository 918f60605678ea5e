"""Attempts on a time line: steps over time, and a bar for each that shows how it ended."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fitb.errors import FINISHED, RESUME
from fitb.report.charts import LEFT, ROW, TOP, above, colour, frame, plain_ticks, shortened
from fitb.report.gather import Run
from fitb.rundir.events import when
from fitb.rundir.history import Attempt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDS = {  # how an attempt ended -> colour of its bar, of its edge, hatch; colours are the runs'
    "finished": ("#6a645a", "#6a645a", ""),
    "saved and left": ("#ddd6ca", "#6a645a", ""),
    "stopped or crashed": ("#fffefb", "#d55e00", "//////"),
    "no word of its end": ("#fffefb", "#6a645a", "...."),
}
_LANE = 20.0
_UNITS = ((172_800, 86_400, "days"), (7200, 3600, "hours"), (300, 60, "minutes"), (0, 1, "seconds"))


def end_of(attempt: Attempt) -> str:
    """Say in one of ENDS how an attempt ended."""
    if attempt.exit_code is None:
        return "no word of its end"
    if attempt.exit_code == FINISHED:
        return "finished"
    return "saved and left" if attempt.exit_code == RESUME else "stopped or crashed"


def points_of(attempt: Attempt, begin: datetime.datetime) -> list[tuple[float, int]]:
    """Return what is known of an attempt's way: seconds since `begin`, step; in order of time."""
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


def draw_attempts(runs: Sequence[Run], width: float) -> Figure:
    """Draw steps over time, and below a bar for each attempt; time begins with each run."""
    lanes = len(runs)
    found = [(run, list(timed(run))) for run in runs]
    longest = max((points[-1][0] for _, each in found for _, points in each), default=0.0)
    size, unit = next((size, unit) for least, size, unit in _UNITS if longest >= least)
    kinds = [k for k in ENDS if any(end_of(a) == k for _, each in found for a, _ in each)]
    lane_height = _LANE * lanes + 8
    rows = 1 if width > 600 else 2
    names = [shortened(run.name, 14) for run in runs] if lanes > 1 else []
    left = max([LEFT, *(12 + 5.2 * len(name) for name in names)])
    figure, axes = frame(width, 150 + lane_height, top=TOP + ROW * rows, left=left)
    axes.set_ylabel("")
    split = lane_height / (150 + lane_height)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0 + split * box.height, box.width, (1 - split) * box.height))
    lane = figure.add_axes((box.x0, box.y0, box.width, split * box.height), sharex=axes)
    for number, (_, attempts) in enumerate(found):
        _draw_steps(axes, attempts, number, size)
        _draw_bars(lane, attempts, number, size)
        if names:
            _name_lane(lane, names[number], number)
    axes.set_xlim(0, longest / size * 1.01 or 1)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.spines["bottom"].set_visible(False)
    plain_ticks(axes.yaxis)
    plain_ticks(axes.xaxis)
    lane.set_ylim(lanes - 0.4, -0.6)
    lane.set_yticks([])
    lane.set_xlabel(f"{unit} since the first attempt began", loc="right", labelpad=2)
    above(figure, "steps done, and attempts", [])
    _legend(figure, kinds, rows)
    return figure


def timed(run: Run) -> Iterator[tuple[Attempt, list[tuple[float, int]]]]:
    """Yield each attempt with its way, in seconds since the first began; none without a time."""
    begin = min((a.began for a in run.attempts if a.began), default=None)
    if begin is not None:
        for attempt in run.attempts:
            points = points_of(attempt, begin)
            if points and attempt is run.attempts[-1] and attempt.ended is None and run.seen:
                logged = max(curve.steps[-1] for curve in run.curves.values())
                points += _seen((run.seen - begin).total_seconds(), int(logged), points[-1])
            if points:
                yield attempt, points


def _seen(time_s: float, step: int, last: tuple[float, int]) -> list[tuple[float, int]]:
    """Return how far an attempt without an end has come, where it is further than what is known."""
    return [(time_s, step)] if time_s > last[0] and step >= last[1] else []


def _draw_steps(
    axes: Axes, attempts: list[tuple[Attempt, list[tuple[float, int]]]], number: int, size: int
) -> None:
    for attempt, points in attempts:
        x, y = [time / size for time, _ in points], [step for _, step in points]
        axes.plot(x, y, color=colour(number), linewidth=1.6)
        saves = {save.get("step") for save in attempt.saves}
        dots = [(a, b) for a, b in zip(x, y, strict=True) if b in saves]
        axes.plot(
            [a for a, _ in dots],
            [b for _, b in dots],
            linestyle="none",
            marker="o",
            markersize=3.6,
            color=colour(number),
            clip_on=False,
        )


def _draw_bars(
    lane: Axes, attempts: list[tuple[Attempt, list[tuple[float, int]]]], number: int, size: int
) -> None:
    for attempt, points in attempts:
        begin, end = points[0][0] / size, points[-1][0] / size
        shade, edge, hatch = ENDS[end_of(attempt)]
        lane.barh(
            number,
            max(end - begin, 1e-9),
            left=begin,
            height=0.62,
            facecolor=shade,
            edgecolor=edge,
            linewidth=0.8,
            hatch=hatch,
        )
    lane.grid(False)


def _name_lane(lane: Axes, name: str, number: int) -> None:
    lane.text(
        -0.008,
        number,
        name,
        transform=lane.get_yaxis_transform(),
        ha="right",
        va="center",
        size=8.0,
        color=colour(number),
    )


def _legend(figure: Figure, kinds: Sequence[str], rows: int) -> None:
    from matplotlib.patches import Rectangle

    width, height = (size * 72.0 for size in figure.get_size_inches())
    at, line = 2.0, 0
    for kind in kinds:
        size = 30 + 5.3 * len(kind)
        if at + size > width and line + 1 < rows:
            at, line = 2.0, line + 1
        y = 1 - (26 + ROW * line) / height
        shade, edge, hatch = ENDS[kind]
        box = Rectangle(
            (at / width, y - 4 / height),
            12 / width,
            8 / height,
            facecolor=shade,
            edgecolor=edge,
            linewidth=0.8,
            hatch=hatch,
            transform=figure.transFigure,
        )
        figure.add_artist(box)
        figure.text((at + 17) / width, y, kind, va="center_baseline", size=8.5)
        at += size
