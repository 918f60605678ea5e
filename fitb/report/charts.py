"""Panels as figures, each drawn once: for the page as SVG, for papers as PNG.

Lengths are points; a panel is as wide as a phone, so that its text can be read on one.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fitb.errors import ConfigError
from fitb.fsio import written_whole
from fitb.report.panels import Line, Panel
from fitb.report.svg import inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH, WIDE = 384.0, 1180.0
HEIGHT = 190.0  # of a plot, without legend and margins
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 28.0, 32.0
ROW = 15.0  # of a legend
PNG_DPI = 300
_PNG_MARK, _HEAD_BYTES = b"Software\0fitb", 1000
POINTS = 72.0  # an inch
_INK, _SOFT, _LINE, _PAPER = "#24211c", "#6a645a", "#ddd6ca", "#fffefb"
# Okabe and Ito's colours (jfly.uni-koeln.de/color), without yellow, which paper swallows; markers
# tell the lines apart where there is no colour at all.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b", "#8c3b00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
VARIABLES = {_INK: "--ink", _SOFT: "--soft", _LINE: "--line", _PAPER: "--paper"} | {
    colour: f"--c{number}" for number, colour in enumerate(PALETTE)
}
_LONGEST_LABEL = 34
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run may be called $x$
    "path.simplify": False,  # thinning keeps extremes, this would not
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "xtick.major.width": 0.8,
    "lines.linewidth": 1.3,
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Args:
        name: of its file, and prefix of its ids.
        title: what it shows.
        facts: its values in words.
        svgs: one that fits anywhere, or one for wide screens and one for narrow ones.
    """

    name: str
    title: str
    facts: Sequence[str]
    svgs: Sequence[str]


def check_matplotlib() -> None:
    """Raise ConfigError where charts cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        message = f"{error.name} is not installed; `pip install 'fitb[plots]'` brings it"
        raise ConfigError(message) from error


def drawn(
    name: str,
    title: str,
    facts: Sequence[str],
    draw: Callable[[float], Figure],
    *,
    png: Path | None = None,
    widths: Sequence[float] = (WIDTH,),
) -> Chart:
    """Draw a chart.

    Args:
        draw: makes its figure of a width in points.
        png: folder, which exists, that gets it as NAME.png, in the first of the widths.
        widths: one SVG is made of each.
    Raises: SystemFault where the disk is full; ConfigError where another PNG has that name.
    """
    svgs = []
    for number, width in enumerate(widths):
        with _style(name):
            figure = draw(width)
            text = io.StringIO()
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
            if png and not number:
                _put_png(png / f"{name}.png", figure)
        about = "; ".join(facts) or title
        prefix = f"{name}-{number}" if number else name
        svgs.append(inline(text.getvalue(), prefix, title, about, VARIABLES))
    return Chart(name, title, facts, svgs)


def _put_png(path: Path, figure: Figure) -> None:
    if path.is_symlink() or (path.exists() and _PNG_MARK not in path.read_bytes()[:_HEAD_BYTES]):
        raise ConfigError(
            f"{path} is not a chart that fitb drew; move it away, or name another folder with --png"
        )
    settings: Any = {"dpi": PNG_DPI, "facecolor": "white", "metadata": {"Software": "fitb"}}
    with written_whole(path) as scratch:
        figure.savefig(scratch, format="png", **settings)


@contextlib.contextmanager
def _style(salt: str) -> Iterator[None]:
    import matplotlib

    style: Any = {**_STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's font has it
        yield


def draw_panel(panel: Panel, width: float = WIDTH) -> Figure:
    """Draw lines over steps, or one quantity over another."""
    labels = [shortened(line.label) for line in panel.lines]
    entries = list(zip(labels, [line.colour for line in panel.lines], strict=True))
    rows = legend_rows(entries, width - 20) if panel.named or len(panel.lines) > 1 else []
    figure, axes = frame(width, HEIGHT, top=TOP + ROW * len(rows))
    for place, line in enumerate(panel.lines):
        _draw_line(axes, line, place, len(panel.lines) if rows else 0)
        if panel.x_label != "step" and len(line.x):
            axes.plot(
                line.x[-1], line.y[-1], "o", color=colour(line.colour), markersize=6.5, zorder=4
            )
    for step in panel.marks:
        axes.axvline(step, color=_SOFT, linewidth=0.7, dashes=(1, 2), zorder=0)
    _scale_y(axes, panel)
    axes.set_xlabel(panel.x_label, loc="right", labelpad=2)
    if panel.x_log:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis, *axes.get_xlim())
    elif panel.x_label == "step":
        axes.set_xlim(0, max((float(line.x[-1]) for line in panel.lines), default=1.0) or 1.0)
    if not panel.x_log:
        plain_ticks(axes.xaxis)
    above(figure, panel.label, rows)
    return figure


def _draw_line(axes: Axes, line: Line, place: int, of: int) -> None:
    # Five markers of each line, those of one line beside those of the next.
    wanted = (np.arange(5) + (place + 0.5) / max(1, of)) / 5 * line.x.max(initial=0.0)
    marked = np.searchsorted(line.x, wanted).clip(max=max(0, len(line.x) - 1)).tolist()
    alone = not of and not line.dots
    axes.plot(
        line.x,
        line.y,
        color=colour(line.colour),
        marker=None if alone else MARKERS[line.colour % len(MARKERS)],
        markersize=3.6 if line.dots else 4.4,
        markeredgecolor=_PAPER,
        markeredgewidth=0.6,
        markevery=None if line.dots or alone else marked,
        clip_on=not line.dots,
        zorder=3,
    )


def _scale_y(axes: Axes, panel: Panel) -> None:
    if panel.log:
        axes.set_yscale("log")
        _log_ticks(axes.yaxis, *axes.get_ylim())
        return
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in panel.lines])
    if panel.zero:
        top = float(values.max()) if len(values) else 0.0
        axes.set_ylim(min(0.0, float(values.min()) if len(values) else 0.0), top * 1.08 or 1.0)
    plain_ticks(axes.yaxis, panel.percent)


def frame(
    width: float, height: float, *, top: float = TOP, left: float = LEFT
) -> tuple[Figure, Axes]:
    """Make a figure with one plot.

    Args:
        width: of the figure.
        height: of the plot.
        top, left: margins.
    """
    from matplotlib.figure import Figure

    total = height + top + BOTTOM
    figure = Figure(figsize=(width / POINTS, total / POINTS), dpi=POINTS)
    box = (left / width, BOTTOM / total, (width - left - RIGHT) / width, height / total)
    return figure, figure.add_axes(box)


def above(figure: Figure, label: str, rows: Sequence[Sequence[tuple[str, int, float]]]) -> None:
    """Write what the vertical axis is above the plot, and the legend below that.

    Args:
        rows: as `legend_rows` gives them.
    """
    from matplotlib.lines import Line2D

    width, height = (size * POINTS for size in figure.get_size_inches())
    figure.text(2 / width, 1 - 11 / height, label, weight="bold", size=9.5, va="center")
    for place, row in enumerate(rows):
        y = 1 - (26 + ROW * place) / height
        for text, number, begin in row:
            x = [(begin + 2) / width, (begin + 16) / width]
            handle = Line2D(x, [y, y], color=colour(number), linewidth=1.6)
            figure.add_artist(handle)
            middle = Line2D(
                [sum(x) / 2],
                [y],
                color=colour(number),
                marker=MARKERS[number % len(MARKERS)],
                markersize=4.4,
                markeredgecolor=_PAPER,
                markeredgewidth=0.6,
            )
            figure.add_artist(middle)
            figure.text((begin + 20) / width, y, text, va="center_baseline", size=8.5)


def legend_rows(
    entries: Sequence[tuple[str, int]], width: float
) -> list[list[tuple[str, int, float]]]:
    """Set the entries of a legend in rows: text, number of the colour, where it begins."""
    rows: list[list[tuple[str, int, float]]] = []
    at = width
    for text, number in entries:
        size = 34 + 5.3 * len(text)
        if at + size > width or not rows:
            rows.append([])
            at = 0.0
        rows[-1].append((text, number, at))
        at += size
    return rows


def shortened(text: str, longest: int = _LONGEST_LABEL) -> str:
    """Cut a label in the middle: its end tells most."""
    if len(text) <= longest:
        return text
    head = longest // 3
    return f"{text[:head]}\u2026{text[head - longest + 1 :]}"


def colour(number: int) -> str:
    """Return the colour of the line of a number; they come again after eight."""
    return PALETTE[number % len(PALETTE)]


def plain_ticks(axis: Axis, percent: bool = False) -> None:
    """Put some five round numbers at a linear axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:.3g}%" if percent else tick(value))
    )


def _log_ticks(axis: Axis, low: float, high: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    decades = np.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3.2 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=9 if decades < 8 else 6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))


def tick(value: float) -> str:
    """Write a number at an axis in at most some six characters: 0.05, 250, 1.5k, 20M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
