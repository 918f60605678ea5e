"""Evaluations and comparisons as text with aligned tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fitb.base.templates import render_template
from fitb.evaluation.categories import GROUPS
from fitb.evaluation.evaluate_config import ROLES
from fitb.evaluation.metrics import METRICS, TEXT_METRICS


def evaluation_text(result: Mapping[str, Any]) -> str:
    """Render a result of `evaluate`."""
    return _render("evaluation", result)


def comparison_text(result: Mapping[str, Any]) -> str:
    """Render a result of `compare`."""
    return _render("comparison", result)


def folder_text(found: Mapping[str, Any]) -> str:
    """Render a result of `evaluate_all`: one table per set, one row per model."""
    results, missing = found["models"], found["missing"]
    first: Mapping[str, Any] = next(iter(results.values()), {"sets": {}})

    def rows_of(name: str) -> dict[str, Any]:
        rows = {model: each["sets"][name]["models"]["model"] for model, each in results.items()}
        others = first["sets"][name]["models"]
        return rows | {role: others[role] for role in ROLES[1:] if role in others}

    return _render("folder", first, results=results, missing=missing, rows_of=rows_of)


def _render(name: str, result: Mapping[str, Any], **values: Any) -> str:
    functions = (covered, number, interval_table, category_table, difference_table)
    values |= {function.__name__: function for function in functions}
    return render_template(f"evaluation/{name}.txt.j2", result=result, **values).rstrip("\n")


def number(value: float | None, sign: str = "", digits: tuple[int, int] = (4, 2)) -> str:
    """Format a number with about five significant digits; a dash for None.

    Args:
        value: the number.
        sign: "+" also writes the sign of positive numbers.
        digits: decimal places of numbers below 10, and of those below 1,000.
    """
    if value is None:
        return "-"
    size = abs(value)
    places = digits[0] if size < 10 else digits[1] if size < 1000 else 0
    return f"{value:{sign},.{places}f}" if size < 1e7 else f"{value:{sign}.1e}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("   ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def covered(found: Mapping[str, Any]) -> str:
    """Return the caption of the intervals of a set."""
    if "num_documents" not in found:  # results of format 1
        return "95 % intervals resample rows: too narrow if documents have several rows"
    return (
        f"95 % intervals resample the {found['num_documents']:,} documents: they cover the choice"
        " of documents, not another source of text or another training seed"
    )


def interval_table(models: Mapping[str, Any], part: str = "metrics") -> str:
    """Return two lines per model: values, and their intervals below.

    Args:
        models: results by name.
        part: metrics, texts; or over_masks, means over masks with standard deviations below.
    """
    known = (*METRICS, *TEXT_METRICS)
    metrics = [metric for metric in known if metric in next(iter(models.values()))[part]]
    rows = [["", *metrics]]
    for name, model in models.items():
        found = [model[part][metric] for metric in metrics]
        if part == "over_masks":
            upper, lower = "mean", [f"+-{number(each['sd'])}" for each in found]
        else:
            upper, lower = "value", [f"{number(e['low'])}..{number(e['high'])}" for e in found]
        rows += [[name, *(number(each[upper]) for each in found)], ["", *lower]]
    return aligned(rows)


def category_table(found: Mapping[str, Any]) -> str:
    """Return one line per category with masked words: its size and the model's metrics."""
    model = found["models"]["model"]
    metrics = [metric for metric in METRICS if metric in model["metrics"]]
    rows = [["", "positions", "words", *metrics]]
    for name in GROUPS:
        size = found["categories"].get(name)
        if size and size["num_slots"]:
            values = [number(model["categories"][name][metric]["value"]) for metric in metrics]
            rows.append([name, f"{size['num_slots']:,}", f"{size['num_words']:,}", *values])
    return aligned(rows)


def difference_table(found: Mapping[str, Any]) -> str:
    """Return one line per metric of two models, over all words and by category."""
    rows = [["", "A", "B", "A - B", "95 % interval", "p"]]
    rows += _differences("", found["differences"], METRICS)
    for group, apart in found["by_category"].items():
        if num_slots := found["categories"][group]["num_slots"]:
            rows.append([f"{group} ({num_slots:,} masked positions)", *[""] * 5])
            rows += _differences("  ", apart, ("loss", "top1", "span_em"))
    return aligned(rows)


def _differences(indent: str, apart: Mapping[str, Any], metrics: Sequence[str]) -> list[list[str]]:
    return [
        [
            f"{indent}{metric}",
            number(each["first"]),
            number(each["second"]),
            number(each["value"], "+"),
            f"{number(each['low'], '+')} .. {number(each['high'], '+')}",
            number(each["p"]),
        ]
        for metric in metrics
        if (each := apart.get(metric))
    ]
