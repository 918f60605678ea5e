"""The page: what was gathered, in words and numbers, around the charts."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import fitb
from fitb.cluster.history import Attempt
from fitb.report.blanks import Blanks, spaced
from fitb.report.charts import MARKERS, PALETTE, Chart
from fitb.report.evaluations import Evaluations, Value
from fitb.report.gather import Run, differing, printable, without_secrets
from fitb.report.panels import STUDENT, number
from fitb.report.thin import BUCKETS
from fitb.report.timeline import end_of
from fitb.status.run import duration

METRICS = {
    "loss": "loss",
    "ppl": "perplexity",
    "top1": "top-1",
    "top5": "top-5",
    "span_em": "words",
    "span_f1": "word F1",
    "ece": "calibration",
    "agreement": "as teacher",
    "kl": "KL to teacher",
}
_SHARES = ("top1", "top5", "span_em", "span_f1", "ece", "agreement")
_MARKER_SIGNS = dict(zip(MARKERS, "\u25cf\u25a0\u25b2\u25c6\u25bc\u271a\u2716\u2b22", strict=True))


@dataclass(frozen=True)
class Part:
    """A section of charts."""

    title: str
    about: str
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Content:
    """All that a page shows.

    Args:
        runs: in order.
        parts: sections of charts; the first comes before the evaluation.
        attempts: the chart of attempts; None where there are none.
        evaluations: tables.
        evaluation_charts: for each table its charts.
        blanks: of each run.
        written: when.
    """

    runs: Sequence[Run]
    parts: Sequence[Part]
    attempts: Chart | None
    evaluations: Evaluations
    evaluation_charts: Sequence[Sequence[Chart]]
    blanks: Sequence[Blanks]
    written: datetime.datetime


def render(content: Content) -> str:
    """Return the page: HTML that needs nothing from elsewhere, whatever the runs are called."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = Markup  # of fitb.report.svg, which serialises what it parsed
    source = (resources.files("fitb.report") / "page.html.j2").read_text(encoding="utf-8")
    runs = content.runs
    return environment.from_string(source).render(
        content=content,
        title=_title(runs),
        state=state_of(runs[0]),
        figures=list(key_figures(runs[0])),
        palette=PALETTE,
        sign=lambda place: _MARKER_SIGNS[MARKERS[place % len(MARKERS)]],
        state_of=state_of,
        key_figures=key_figures,
        metrics=METRICS,
        cell=cell,
        attempts=[list(map(attempt_row, run.attempts)) for run in runs],
        differences=[
            (printable(key), [without_secrets(value) for value in values])
            for key, values in (differing(runs) if len(runs) > 1 else {}).items()
        ],
        provenance=[list(provenance_of(run)) for run in runs],
        shards=shlex.quote(without_secrets(runs[0].config.get("data.shards", "SHARDS"))),
        configs=[without_secrets(run.config_text, lines=True) for run in runs],
        spaced=spaced,
        chance=chance,
        plain_value=lambda metric, value: cell(metric, Value(value, None, None))[0],
        buckets=BUCKETS,
        version=fitb.__version__,
        when=f"{content.written:%Y-%m-%d %H:%M} UTC",
    )


def _title(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def state_of(run: Run) -> str:
    """Say in a sentence where a run stands."""
    found = run.status
    if found is None:
        return "Where it stands is not known."
    if not found.attempts:
        return "Not started: no attempt has begun."
    of = f" of {found.steps:,}" if found.steps else ""
    why = f": {found.why}" if found.why else ""
    left = f", {duration(found.left_s)} left" if found.state == "running" and found.left_s else ""
    return f"{found.state.capitalize()} at step {found.step:,}{of}{left}{why}."


def key_figures(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield (what, value, remark) of what a run is judged by; a dash where it is not known."""
    best = run.status.best_loss if run.status else None
    step = run.status.best_step if run.status else None
    yield "validation loss", number(best), f"best, at step {step:,}" if step else "nats"
    yield "validation top-1", number(run.last("val/top1"), percent=True), "at the last validation"
    yield "student loss", number(run.last(STUDENT)), "training, at the last logged step"
    speed, tflops, mfu = (
        run.curves[name].median() if name in run.curves else None
        for name in ("perf/tokens_per_s", "perf/tflops", "perf/mfu")
    )
    share = f"MFU {number(mfu, percent=True)}" if mfu else f"{number(tflops)} TFLOP/s a device"
    yield "tokens per second", number(speed), f"median; {share}"
    numbered = [attempt for attempt in run.attempts if attempt.number]
    began, ended = (
        min((a.began for a in numbered if a.began), default=None),
        max((a.ended for a in numbered if a.ended), default=None),
    )
    took = (
        f"{duration((ended - began).total_seconds())} from first to last"
        if (began and ended and ended >= began)
        else "so far"
    )
    yield "attempts", str(len(numbered)), took


def attempt_row(attempt: Attempt) -> dict[str, str]:
    """Return an attempt in words, for a table."""
    reasons = [*filter(None, (attempt.reason, attempt.decided)), *attempt.notes]
    code = f" (exit code {attempt.exit_code})" if attempt.exit_code is not None else ""
    ranks = f"{attempt.world_size:,}" if isinstance(attempt.world_size, int) else "-"
    hosts = ", ".join(printable(host) for host in attempt.hosts[:3])
    more = f", {len(attempt.hosts) - 3} more" if len(attempt.hosts) > 3 else ""
    seconds = (
        (attempt.ended - attempt.began).total_seconds() if attempt.began and attempt.ended else None
    )
    return {
        "number": str(attempt.number),
        "end": end_of(attempt),
        "why": printable("; ".join(reasons) or "no reason on record") + code,
        "steps": f"{attempt.first_step:,} to {attempt.last_step:,}",
        "ranks": ranks,
        "hosts": f"{len(attempt.hosts):,}: {hosts}{more}" if hosts else "-",
        "began": f"{attempt.began:%Y-%m-%d %H:%M:%S %Z}" if attempt.began else "-",
        "lasted": duration(max(0.0, seconds)) if seconds is not None else "-",
        "start": duration(sum(attempt.start_s.values())) if attempt.start_s else "-",
        "job": printable(attempt.job or "-"),
    }


def cell(metric: str, value: Value | None, sign: str = "") -> tuple[str, str]:
    """Return a metric's value and its interval, as a table shows them: shares in per cent."""
    if value is None or value.value is None:
        return "-", ""
    low, high = (_short(metric, end, sign) for end in (value.low, value.high))
    unit = "" if metric not in _SHARES else " points" if sign else "%"
    interval = f"{low} to {high}" if low and high else ""
    return _short(metric, value.value, sign) + unit, interval


def _short(metric: str, value: float | None, sign: str) -> str:
    if value is None:
        return ""
    if metric in _SHARES:
        return f"{100 * value:{sign}.1f}"
    digits = 3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:{sign},.{digits}f}" if abs(value) < 1e7 else f"{value:{sign}.1e}"


def chance(probability: float) -> str:
    """Write a probability; small ones as one in so many."""
    if probability >= 0.0005:
        return f"{probability:.1%}"
    return f"1 in {1 / probability:,.0f}" if probability > 1e-9 else "below 1 in 1,000,000,000"


def provenance_of(run: Run) -> Iterator[tuple[str, str]]:
    """Yield (what, value) of where a run comes from."""
    yield "folder", printable(run.path.resolve())
    entries = run.provenance
    if entries:
        yield "commit", _each(entries, _commit)
        yield "fitb", _each(entries, lambda entry: entry.get("fitb"))
        yield "Python", _each(entries, lambda entry: entry.get("python"))
        yield "packages", _each(entries, lambda entry: _pairs(entry.get("packages")))
        yield "machine", _each(entries, lambda entry: entry.get("machine"))
        yield "devices", _each(entries, lambda entry: _counted(entry.get("devices")) or "CPU")
        yield "hosts", _each(entries, lambda entry: _counted(entry.get("hosts")))
        yield "seed", _each(entries, lambda entry: entry.get("seed"))
    saved = run.checkpoint
    for name, key in (
        ("shards", "fingerprint"),
        ("checkpoint", "sha256"),
        ("W&B id", "wandb_id"),
        ("rows consumed", "rows_consumed"),
    ):
        if saved.get(key):
            value = saved[key]
            yield name, f"{value:,}" if isinstance(value, int) else printable(value)


def _each(entries: Sequence[Mapping[str, Any]], what: Any) -> str:
    """Return what all attempts have in common, or each value with the attempt it came with."""
    found: list[tuple[Any, str]] = []
    for place, entry in enumerate(entries, 1):
        value = what(entry)
        text = "not known" if value in (None, "") else printable(value)
        if not found or found[-1][1] != text:
            found.append((entry.get("attempt", place), text))
    if len(found) == 1:
        return found[0][1]
    return "; ".join(f"from attempt {printable(attempt)} on {text}" for attempt, text in found)


def _commit(entry: Mapping[str, Any]) -> str:
    changed = len(str(entry.get("diff") or "").splitlines())
    return f"{entry.get('commit') or 'not known'}" + (
        f", with local changes ({changed:,} lines in provenance.json)" if changed else ""
    )


def _pairs(packages: Any) -> str:
    if not isinstance(packages, dict):
        return ""
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _counted(names: Any) -> str:
    if not isinstance(names, list):
        return ""
    counts = {name: names.count(name) for name in map(str, names)}
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())
