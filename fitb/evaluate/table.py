"""Results of evaluations for people: a row per model, numbers beside what they depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fitb.evaluate.categories import GROUPS
from fitb.evaluate.metrics import METRICS

_MOVED = ("l2_mean", "l2_max", "cosine_mean", "cosine_min")
_WIDTH = 16


def render(result: dict[str, Any]) -> str:
    """Render a result of `evaluate`."""
    return "\n".join(_lines(result))


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for role, each in result["models"].items():
        yield model_line(role, each, result)
    for name, found in result["sets"].items():
        yield from about_lines(name, found, result)
        speed = found["models"]["model"]["tokens_per_s"]
        yield f"{speed:,.0f} tokens/s through the model"
        yield ""
        models = found["models"]
        yield from table({role: each["metrics"] for role, each in models.items()})
        if result["masks"] > 1:
            yield ""
            yield f"over {result['masks']} masks: mean and standard deviation"
            yield from _over_masks({role: each["over_masks"] for role, each in models.items()})
        yield ""
        yield "the model by category of the masked word (intervals are in the JSON)"
        yield from _by_category(found)
    yield from _drift(result.get("drift"))


def model_line(role: str, each: dict[str, Any], result: dict[str, Any]) -> str:
    """Say which model a role is, and whether it read the rows in windows."""
    line = f"{role}: {each['source']}, {each['num_parameters']:,} parameters"
    rows = max(found.get("length", 0) for found in result["sets"].values())
    trained = each.get("trained_length", rows)  # results of before say neither
    return line if rows <= trained else f"{line}, reads windows of {trained} tokens"


def about_lines(name: str, found: dict[str, Any], result: dict[str, Any]) -> Iterator[str]:
    """Say which rows and masks a set's numbers are of."""
    mask = result["mask"]
    yield ""
    yield (
        f"{name}: {found['split']} split of {found['shards']} ({found['fingerprint'][:12]}):"
        f" {found['num_rows']:,} rows, {found['num_slots']:,} slots,"
        f" {found['num_words']:,} whole words"
    )
    yield covered(found)
    yield f"masks: {mask['strategy']}, {mask['fraction']:.0%} of tokens, seed {result['seed']}"
    for category, reason in found["not_told"].items():
        yield f"no {category}: {reason}"
    read = found["documents_read_again"]
    if read["found"] < read["wanted"]:
        yield f"capitals are known of {read['found']:,} of {read['wanted']:,} documents"


def covered(found: Mapping[str, Any]) -> str:
    """Say what the intervals of a set's numbers cover."""
    if "num_documents" not in found:  # results of before
        return "95 % intervals resample rows: too narrow, where documents are of several rows"
    return (
        f"95 % intervals resample the {found['num_documents']:,} documents: they cover other"
        " documents of this kind, no other source of text and no other seed of training"
    )


def table(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield two lines for each model: values, and their intervals below."""
    cells = {
        name: {
            metric: (number(each["value"]), f"{number(each['low'])}..{number(each['high'])}")
            for metric, each in values.items()
        }
        for name, values in models.items()
    }
    yield from _two_lines(cells)


def _two_lines(models: Mapping[str, Mapping[str, tuple[str, str]]]) -> Iterator[str]:
    metrics = [metric for metric in METRICS if metric in next(iter(models.values()))]
    width = max(map(len, models)) + 2
    yield f"{'':{width}}" + "".join(f"{metric:>{_WIDTH}}" for metric in metrics)
    for name, values in models.items():
        for label, line in ((name, 0), ("", 1)):
            texts = (values[metric][line] for metric in metrics)
            yield f"{label:{width}}" + "".join(f"{text:>{_WIDTH}}" for text in texts)


def number(value: float | None, sign: str = "") -> str:
    """Write a number in some five places; a dash where there is none."""
    if value is None:
        return "-"
    size = abs(value)
    digits = 4 if size < 10 else 2 if size < 1000 else 0
    return f"{value:{sign},.{digits}f}" if size < 1e7 else f"{value:{sign}.1e}"


def _over_masks(models: Mapping[str, Any]) -> Iterator[str]:
    cells = {
        role: {
            metric: (number(each["mean"]), f"+-{number(each['sd'])}")
            for metric, each in values.items()
        }
        for role, values in models.items()
    }
    yield from _two_lines(cells)


def _by_category(found: dict[str, Any]) -> Iterator[str]:
    model = found["models"]["model"]["categories"]
    metrics = [metric for metric in METRICS if metric in found["models"]["model"]["metrics"]]
    yield f"{'':14}{'slots':>9}{'words':>9}" + "".join(f"{metric:>11}" for metric in metrics)
    for name in GROUPS:
        if name in model and (size := found["categories"][name])["num_slots"]:
            cells = "".join(f"{number(model[name][metric]['value']):>11}" for metric in metrics)
            yield f"{name:14}{size['num_slots']:>9,}{size['num_words']:>9,}{cells}"


def _drift(found: dict[str, Any] | None) -> Iterator[str]:
    if found:
        yield ""
        yield "input embeddings since before training"
        for kind, moved in found.items():
            values = [number(moved[key]) for key in _MOVED]
            yield (
                f"{kind} ({moved['num_tokens']:,} tokens): distance {values[0]} mean,"
                f" {values[1]} largest; cosine {values[2]} mean, {values[3]} smallest"
            )
