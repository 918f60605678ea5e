"""Charts by matplotlib: SVG for the page, PNG for papers.

Lengths are in points (1/72 inch); a chart is as wide as a phone, so that it is legible on one.
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

from fitb.base.errors import ConfigError
from fitb.base.fsio import written_whole
from fitb.tools.report.evaluations import SHARES, Row
from fitb.tools.report.panels import Panel, Series
from fitb.tools.report.svg import inline

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH, WIDE = 384.0, 1180.0
HEIGHT = 250.0  # without the legend
PNG_DPI = 300
_PNG_MARK, _HEAD_BYTES = b"Software\0fitb", 1000
_POINTS = 72.0  # per inch
_ROW, _HANDLE, _LETTER = 15.0, 38.0, 5.3  # legend: row height, handle width, mean letter width
INK, SOFT, LINE, PAPER = "#24211c", "#6a645a", "#ddd6ca", "#fffefb"
# Okabe and Ito's colours (jfly.uni-koeln.de/color), without yellow, which is invisible on white;
# in print without colour the markers tell lines apart.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b", "#8c3b00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", PAPER: "--paper"} | {
    colour: f"--c{number}" for number, colour in enumerate(PALETTE)
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run may be called $x$
    "path.simplify": False,  # it would lose the extremes that downsampling keeps
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xaxis.labellocation": "right",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.borderpad": 0.0,
    "legend.borderaxespad": 0.2,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.4,
    "lines.markeredgecolor": PAPER,
    "lines.markeredgewidth": 0.6,
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Args:
        name: name of its file, and prefix of its ids.
        facts: its values in words.
        svgs: one SVG, or one for wide screens and one for narrow ones.
    """

    name: str
    facts: Sequence[str]
    svgs: Sequence[str]


def check_matplotlib() -> None:
    """Raise ConfigError if matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        message = f"{error.name} is not installed; run `pip install 'fitb[plots]'`"
        raise ConfigError(message) from error


def make_chart(
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
        draw: returns its figure, given a width in points.
        png: existing folder for NAME.png, in the first width; None for no PNG.
    Raises: SystemFault if the disk is full; ConfigError if another PNG has that name.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svgs = []
    for number, width in enumerate(widths):
        prefix = f"{name}-{number}" if number else name
        with _style(prefix):
            figure = draw(width)
            engine = figure.get_layout_engine()
            assert engine is not None  # of `new_figure`
            FigureCanvasSVG(figure)  # its text metrics decide the layout
            engine.execute(figure)
            figure.set_layout_engine(None)  # else every savefig draws twice and solves it twice
            text = io.StringIO()
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
            if png and not number:
                _put_png(png / f"{name}.png", figure)
        about = "; ".join(facts) or title
        svgs.append(inline(text.getvalue(), prefix, title, about, VARIABLES))
    return Chart(name, facts, svgs)


def _put_png(path: Path, figure: Figure) -> None:
    if path.is_symlink() or (path.exists() and _PNG_MARK not in path.read_bytes()[:_HEAD_BYTES]):
        raise ConfigError(
            f"{path} was not drawn by fitb; move it away, or choose another folder for --png"
        )
    settings: Any = {"dpi": PNG_DPI, "facecolor": "white", "metadata": {"Software": "fitb"}}
    with written_whole(path) as scratch:
        figure.savefig(scratch, format="png", **settings)


@contextlib.contextmanager
def _style(salt: str) -> Iterator[None]:
    import matplotlib
    from cycler import cycler

    style: Any = {**_STYLE, "svg.hashsalt": salt, "axes.prop_cycle": cycler(color=PALETTE)}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page has other fonts
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; `add_title` makes room for the legend."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _POINTS, height / _POINTS), dpi=_POINTS, layout="constrained")


def add_title(figure: Figure, title: str, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Add title and legend above the plots; the figure grows by the legend."""
    width, height = figure.get_size_inches()
    columns = len(labels)
    if labels:
        widest = _HANDLE + _LETTER * max(map(len, labels))
        columns = min(columns, max(1, int(width * _POINTS / widest)))
        figure.set_figheight(height + _ROW * -(-len(labels) // columns) / _POINTS)
    figure.legend(
        handles,
        labels,
        title=title,
        title_fontproperties={"weight": "bold", "size": 9.5},
        alignment="left",
        loc="outside upper left",
        ncols=max(1, columns),
    )


def draw_panel(panel: Panel, width: float) -> Figure:
    """Draw series over steps, or one quantity over another."""
    named = panel.named or len(panel.series) > 1
    figure = new_figure(width, HEIGHT)
    axes = figure.add_subplot()
    handles = [
        _draw_series(axes, each, place / len(panel.series) if named else None)
        for place, each in enumerate(panel.series)
    ]
    for step in panel.marks:
        axes.axvline(step, color=SOFT, linewidth=0.7, dashes=(1, 2), zorder=0)
    if panel.x_label == "step":
        last = max((float(each.x[-1]) for each in panel.series), default=1.0)
        axes.set_xlim(0, last or 1.0)
    else:
        for each in panel.series:
            axes.plot(each.x[-1:], each.y[-1:], "o", color=f"C{each.colour}", markersize=6.5)
    if panel.log:
        axes.set_yscale("log")
    elif panel.zero and axes.dataLim.ymin >= 0:
        axes.set_ylim(0, axes.dataLim.ymax * 1.08 or 1.0)
    if panel.x_log:
        axes.set_xscale("log")
    axes.set_xlabel(panel.x_label)
    set_ticks(axes.xaxis)
    set_ticks(axes.yaxis, panel.percent)
    labels = [shortened(each.label) for each in panel.series] if named else []
    add_title(figure, panel.label, handles if named else [], labels)
    return figure


def _draw_series(axes: Axes, series: Series, shift: float | None) -> Artist:
    """Draw a line, with five markers that do not cover those of other series.

    Args:
        shift: offset of the first marker, in distances between markers; None for a single series.
    """
    marked = series.dots or (shift is not None and np.isfinite(series.y).any())
    (line,) = axes.plot(
        series.x,
        series.y,
        color=f"C{series.colour}",
        marker=MARKERS[series.colour % len(MARKERS)] if marked else None,
        markevery=None if series.dots or shift is None else (0.2 * shift, 0.2),
        clip_on=not series.dots,
        in_layout=False,  # an empty line would count as a point at the figure's corner
        zorder=3,
    )
    return line


def draw_intervals(rows: Sequence[Row], metric: str, title: str, width: float) -> Figure:
    """Draw a metric of each model as a point with its 95 % interval."""
    figure = new_figure(width, 74 + 18.0 * len(rows))
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        found, shade = row.metrics[metric], "C0" if row.is_run else "C6"
        if found.value is not None:
            ends = [end for end in (found.low, found.high) if end is not None]
            axes.plot(ends, [place] * len(ends), color=shade, linewidth=2.0)
            marker = "o" if row.is_run else "s"
            axes.plot([found.value], [place], color=shade, marker=marker, markersize=6.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [shortened(row.label, 21) for row in rows])
    axes.grid(True, axis="x")
    axes.grid(False, axis="y")
    set_ticks(axes.xaxis, metric in SHARES)
    add_title(figure, title, [], [])
    return figure


def shortened(text: str, longest: int = 34) -> str:
    """Shorten a label in the middle, because its end is most telling."""
    if len(text) <= longest:
        return text
    head = longest // 3
    return f"{text[:head]}\u2026{text[head - longest + 1 :]}"


def set_ticks(axis: Axis, percent: bool = False) -> None:
    """Set about five ticks at round numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        decades = np.log10(high / low)
        subs = (1.0, 2.0, 5.0) if decades < 2.2 else (1.0, 3.0) if decades < 3.2 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=9 if decades < 8 else 6))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%" if percent else tick(value))


def tick(value: float) -> str:
    """Format the number at a tick in about six characters: 0.05, 250, 1.5k, 20M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
