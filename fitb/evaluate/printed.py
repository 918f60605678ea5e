"""Evaluations and comparisons as text: aligned tables, numbers beside what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fitb.evaluate.categories import GROUPS
from fitb.evaluate.metrics import METRICS

_BASELINES = ("unigram", "untrained", "frozen", "control", "teacher")


def evaluation_text(result: Mapping[str, Any]) -> str:
    """Render a result of `evaluate`."""
    return "\n".join(_evaluation(result))


def comparison_text(result: Mapping[str, Any]) -> str:
    """Render a result of `compare`."""
    return "\n".join(_comparison(result))


def folder_text(found: Mapping[str, Any]) -> str:
    """Render a result of `evaluate_all`: a table for each set, a row for each model."""
    return "\n".join(_folder(found))


def number(value: float | None, sign: str = "", digits: tuple[int, int] = (4, 2)) -> str:
    """Write a number in some five places; a dash where there is none.

    Args:
        sign: "+" writes the sign of positive numbers too.
        digits: after the point, of numbers below 10 and of those below 1,000.
    """
    if value is None:
        return "-"
    size = abs(value)
    places = digits[0] if size < 10 else digits[1] if size < 1000 else 0
    return f"{value:{sign},.{places}f}" if size < 1e7 else f"{value:{sign}.1e}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows of cells as lines: the first column on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "   ".join([first.ljust(widths[0]), *cells]).rstrip()


def covered(found: Mapping[str, Any]) -> str:
    """Say what the intervals of a set's numbers cover."""
    if "num_documents" not in found:  # results of format 1
        return "95 % intervals resample rows: too narrow, where documents are of several rows"
    return (
        f"95 % intervals resample the {found['num_documents']:,} documents: they cover other"
        " documents of this kind, no other source of text and no other seed of training"
    )


def _evaluation(result: Mapping[str, Any]) -> Iterator[str]:
    yield from _models(result)
    for name, found in result["sets"].items():
        yield from _about(name, found, result)
        models = found["models"]
        yield f"{models['model']['tokens_per_s']:,.0f} tokens/s through the model"
        yield ""
        yield from _two_lines({role: each["metrics"] for role, each in models.items()}, _interval)
        if result["masks"] > 1:
            yield ""
            yield f"over {result['masks']} masks: mean and standard deviation"
            by_role = {role: each["over_masks"] for role, each in models.items()}
            yield from _two_lines(by_role, _spread)
        yield ""
        yield "the model by category of the masked word (intervals are in the JSON)"
        yield from _by_category(found)
    if drift := result.get("drift"):
        yield ""
        yield "input embeddings since before training"
        for kind, moved in drift.items():
            keys = ("l2_mean", "l2_max", "cosine_mean", "cosine_min")
            mean, largest, cosine, smallest = (number(moved[key]) for key in keys)
            yield (
                f"{kind} ({moved['num_tokens']:,} tokens): distance {mean} mean, {largest} largest;"
                f" cosine {cosine} mean, {smallest} smallest"
            )


def _folder(found: Mapping[str, Any]) -> Iterator[str]:
    results, missing = found["models"], found["missing"]
    if missing:
        yield (
            f"{len(results)} of {len(results) + len(missing)} models are evaluated;"
            f" not yet: {', '.join(missing)}"
        )
    if not results:
        return
    first = next(iter(results.values()))
    for name, about in first["sets"].items():
        yield from _about(name, about, first)
        yield ""
        rows = {model: each["sets"][name]["models"]["model"] for model, each in results.items()}
        rows |= {role: about["models"][role] for role in _BASELINES if role in about["models"]}
        yield from _two_lines({label: row["metrics"] for label, row in rows.items()}, _interval)


def _comparison(result: Mapping[str, Any]) -> Iterator[str]:
    yield from _models(result)
    for name, found in result["sets"].items():
        yield from _about(name, found, result)
        yield ""
        rows = [["", "A", "B", "A - B", "95 % interval", "p"]]
        rows += _differences("", found["differences"], METRICS)
        for group, apart in found["by_category"].items():
            if num_slots := found["categories"][group]["num_slots"]:
                rows.append([f"{group} ({num_slots:,} masked positions)", *[""] * 5])
                rows += _differences("  ", apart, ("loss", "top1", "span_em"))
        yield from aligned(rows)


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


def _models(result: Mapping[str, Any]) -> Iterator[str]:
    """Say which model each role is, and whether it read the rows in windows."""
    rows = max(found.get("length", 0) for found in result["sets"].values())
    for role, each in result["models"].items():
        trained = each.get("trained_length", rows)  # older results have neither
        windows = f", reads windows of {trained} tokens" if rows > trained else ""
        yield f"{role}: {each['source']}, {each['num_parameters']:,} parameters{windows}"


def _about(name: str, found: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    """Say which rows and masks a set's numbers are of."""
    mask = result["mask"]
    yield ""
    yield (
        f"{name}: {found['split']} split of {found['shards']} ({found['fingerprint'][:12]}):"
        f" {found['num_rows']:,} rows, {found['num_slots']:,} masked positions,"
        f" {found['num_words']:,} whole words"
    )
    yield covered(found)
    yield f"masks: {mask['strategy']}, {mask['fraction']:.0%} of tokens, seed {result['seed']}"
    for category, reason in found["not_told"].items():
        yield f"no {category}: {reason}"
    read = found["documents_read_again"]
    if read["found"] < read["wanted"]:
        yield f"capitals are known of {read['found']:,} of {read['wanted']:,} documents"


def _two_lines(
    models: Mapping[str, Any], cell: Callable[[Mapping[str, Any]], tuple[str, str]]
) -> Iterator[str]:
    """Yield two lines for each model: what `cell` gives of each metric, one below the other."""
    metrics = [metric for metric in METRICS if metric in next(iter(models.values()))]
    rows = [["", *metrics]]
    for name, values in models.items():
        cells = [cell(values[metric]) for metric in metrics]
        rows += [[name, *(above for above, _ in cells)], ["", *(below for _, below in cells)]]
    yield from aligned(rows)


def _interval(each: Mapping[str, Any]) -> tuple[str, str]:
    return number(each["value"]), f"{number(each['low'])}..{number(each['high'])}"


def _spread(each: Mapping[str, Any]) -> tuple[str, str]:
    return number(each["mean"]), f"+-{number(each['sd'])}"


def _by_category(found: Mapping[str, Any]) -> Iterator[str]:
    model = found["models"]["model"]
    metrics = [metric for metric in METRICS if metric in model["metrics"]]
    rows = [["", "positions", "words", *metrics]]
    for name in GROUPS:
        size = found["categories"].get(name)
        if size and size["num_slots"]:
            values = [number(model["categories"][name][metric]["value"]) for metric in metrics]
            rows.append([name, f"{size['num_slots']:,}", f"{size['num_words']:,}", *values])
    yield from aligned(rows)
