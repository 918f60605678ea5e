"""Rendering of a report: the state of each run in words and numbers, around the charts."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fitb
from fitb.base.templates import render_template
from fitb.evaluation.printed import number as metric_number
from fitb.rundir.history import Attempt
from fitb.rundir.status import duration
from fitb.tools.report.blanks import spaced
from fitb.tools.report.charts import MARKERS, PALETTE
from fitb.tools.report.downsample import BUCKETS
from fitb.tools.report.evaluations import SHARES, Value
from fitb.tools.report.gather import RunData, differing, printable, without_secrets
from fitb.tools.report.panels import STUDENT, number
from fitb.tools.report.timeline import end_of
from fitb.tools.status import in_words, state_in_words

METRIC_NAMES = {
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
_MARKER_SIGNS = dict(zip(MARKERS, "\u25cf\u25a0\u25b2\u25c6\u25bc\u271a\u2716\u2b22", strict=True))


def render(runs: Sequence[RunData], now: datetime.datetime, **content: Any) -> str:
    """Return the page as self-contained HTML.

    Args:
        content: `sections`, (title, about, charts) each, the first before the evaluation; `tables`,
            (table, charts) each; `paired`, tables of two models; `attempts`, a chart or None;
            `blanks`, one per run; `notes`, beside those of the runs.
    """
    names = [run.name for run in runs]
    return render_template(
        "tools/report/report.html.j2",
        **content,
        runs=runs,
        title=names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}",
        palette=PALETTE,
        sign=lambda place: _MARKER_SIGNS[MARKERS[place % len(MARKERS)]],
        state_of=state_of,
        key_figures=key_figures,
        metric_names=METRIC_NAMES,
        cell=cell,
        attempt_row=attempt_row,
        differences=differing(runs) if len(runs) > 1 else {},
        printable=printable,
        without_secrets=without_secrets,
        provenance_of=provenance_of,
        shards=shlex.quote(without_secrets(runs[0].config.get("data.shards", "SHARDS"))),
        spaced=spaced,
        chance=chance,
        buckets=BUCKETS,
        version=fitb.__version__,
        when=f"{now:%Y-%m-%d %H:%M} UTC",
    )


def state_of(run: RunData) -> str:
    """Describe the state of a run in a sentence."""
    words = state_in_words(run.status) if run.status else "status unknown"
    return f"{words[0].upper()}{words[1:]}."


def key_figures(run: RunData) -> Iterator[tuple[str, str, str]]:
    """Yield (name, value, remark) of a run's key figures; the value is a dash if unknown."""
    best = run.status.best_loss if run.status else None
    step = run.status.best_step if run.status else None
    yield "validation loss", number(best), f"best, at step {step:,}" if step else "nats"
    yield "validation top-1", number(run.last("val/top1"), percent=True), "at the last validation"
    yield "student loss", number(run.last(STUDENT)), "training, at the last logged step"
    mfu = run.median("perf/mfu")
    share = f"{number(run.median('perf/tflops'))} TFLOP/s per device"
    share = f"MFU {number(mfu, percent=True)}" if mfu else share
    yield "tokens per second", number(run.median("perf/tokens_per_s")), f"median; {share}"
    numbered = [attempt for attempt in run.attempts if attempt.number]
    began = min((a.began for a in numbered if a.began), default=None)
    ended = max((a.ended for a in numbered if a.ended), default=None)
    took = "so far"
    if began and ended and ended >= began:
        took = f"{duration((ended - began).total_seconds())} from first to last"
    yield "attempts", str(len(numbered)), took
    if ledger := run.status and run.status.ledger:
        yield "goodput", number(ledger.goodput, percent=True), in_words(ledger)


def attempt_row(attempt: Attempt) -> dict[str, str]:
    """Return the cells of an attempt's row."""
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
    """Return a metric's value and its interval as text, shares in per cent."""
    if value is None or value.value is None:
        return "-", ""
    unit = ""
    texts = [metric_number(each, sign, digits=(3, 1)) for each in vars(value).values()]
    if metric in SHARES:
        unit = " points" if sign else "%"
        texts = ["" if each is None else f"{100 * each:{sign}.1f}" for each in vars(value).values()]
    shown, low, high = texts
    known = value.low is not None and value.high is not None
    return shown + unit, f"{low} to {high}" if known else ""


def chance(probability: float) -> str:
    """Format a probability, small ones as 1 in N."""
    if probability >= 0.0005:
        return f"{probability:.1%}"
    return f"1 in {1 / probability:,.0f}" if probability > 1e-9 else "below 1 in 1,000,000,000"


def provenance_of(run: RunData) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of a run's provenance."""
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
    for name, key in (
        ("shards", "fingerprint"),
        ("checkpoint", "sha256"),
        ("W&B id", "wandb_id"),
        ("rows consumed", "rows_consumed"),
    ):
        if value := run.checkpoint.get(key):
            yield name, f"{value:,}" if isinstance(value, int) else printable(value)


def _each(entries: Sequence[Mapping[str, Any]], what: Any) -> str:
    """Return the value common to all attempts, or each value with its first attempt."""
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
