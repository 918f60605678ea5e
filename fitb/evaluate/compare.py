"""Two models on the same rows and masks: every metric's paired difference, by category too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from fitb.evaluate.categories import GROUPS
from fitb.evaluate.config import CompareConfig
from fitb.evaluate.measure import Measured, device_of, load, measure
from fitb.evaluate.metrics import METRICS, differences
from fitb.evaluate.ranks import joined
from fitb.evaluate.run import finite, over_masks, settings_of
from fitb.evaluate.score import Bert
from fitb.evaluate.table import about_lines, model_line, number
from fitb.model.load import num_parameters
from fitb.model.positions import KEY, trained_length


def compare(config: CompareConfig) -> dict[str, Any]:
    """Compare two models, in one process or in all that a launcher started.

    Returns: JSON-able: for each set its rows, and for all words and each category each metric's two
        values, their difference, its interval and the p-value; nothing on ranks other than 0.
    Raises: as `evaluate` does.
    """
    with joined(os.environ) as ranks:
        sets, loaded = load(config, ranks)
        for each in loaded.values():
            torch.nn.Module.to(each.model, device_of(ranks))
        predictors = {role: Bert(each.model) for role, each in loaded.items()}
        found = {each.name: measure(config, each, predictors, ranks) for each in sets}
    if not ranks.world.is_main:
        return {}
    result = {
        "models": {
            role: {
                "source": each.source,
                "num_parameters": num_parameters(each.model),
                KEY: trained_length(each.model.config),
            }
            for role, each in loaded.items()
        },
        **settings_of(config),
        "sets": {name: _summary(config, measured) for name, measured in found.items()},
    }
    return dict(finite(result))


def _summary(config: CompareConfig, found: Measured) -> dict[str, Any]:
    first, second = found.counts["A"], found.counts["B"]
    by_group = differences(first[0], second[0], seed=config.seed, num_resamples=config.resamples)
    groups = {
        name: {metric: asdict(each) for metric, each in apart.items()}
        for name, apart in zip(GROUPS, by_group, strict=True)
    }
    return {
        **found.about,
        "differences": groups["all"],
        "by_category": {name: groups[name] for name in found.about["categories"]},
        "over_masks": {"A": over_masks(first), "B": over_masks(second)},
    }


def render(result: dict[str, Any]) -> str:
    """Render a result of `compare` for people."""
    return "\n".join(_lines(result))


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for role, each in result["models"].items():
        yield model_line(role, each, result)
    for name, found in result["sets"].items():
        yield from about_lines(name, found, result)
        yield ""
        yield f"{'':14}{'A':>10}{'B':>10}{'A - B':>10}   {'95 % interval':24}{'p':>7}"
        yield from _rows("", found["differences"], METRICS)
        for group, apart in found["by_category"].items():
            if num_slots := found["categories"][group]["num_slots"]:
                yield f"{group} ({num_slots:,} slots)"
                yield from _rows("  ", apart, ("loss", "top1", "span_em"))


def _rows(indent: str, apart: dict[str, Any], metrics: tuple[str, ...]) -> Iterator[str]:
    for metric in metrics:
        if metric in apart:
            each = apart[metric]
            interval = f"{number(each['low'], '+')} .. {number(each['high'], '+')}"
            yield (
                f"{indent + metric:14}{number(each['first']):>10}{number(each['second']):>10}"
                f"{number(each['value'], '+'):>10}   {interval:24}{number(each['p']):>7}"
            )
