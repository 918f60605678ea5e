"""Compare two models on the same rows and masks: paired differences of every metric."""

from __future__ import annotations

import os
from typing import Any

from fitb.base.fsio import finite
from fitb.evaluation.data_parallel import joined
from fitb.evaluation.evaluate_config import CompareConfig
from fitb.evaluation.measure import Measured, load, measure, models_and_settings
from fitb.evaluation.metrics import by_group, differences, over_masks
from fitb.evaluation.score import Bert


def compare(config: CompareConfig) -> dict[str, Any]:
    """Compare two models, on all ranks of a launcher or in this process.

    Returns: a JSON-serialisable dict: for each set its rows, and for all words and each category
        the two values of each metric, their difference, its interval and the p-value; empty on
        ranks other than 0.
    Raises: see `evaluate`.
    """
    with joined(os.environ) as ranks:
        sets, loaded = load(config, ranks)
        predictors = {role: Bert(each.model) for role, each in loaded.items()}
        found = {each.name: measure(config, each, predictors, ranks) for each in sets}
    if not ranks.world.is_main:
        return {}
    by_set = {name: _summary(config, measured) for name, measured in found.items()}
    return dict(finite({**models_and_settings(config, loaded), "sets": by_set}))


def _summary(config: CompareConfig, found: Measured) -> dict[str, Any]:
    first, second = found.counts["A"], found.counts["B"]
    groups = by_group(
        differences(first[0], second[0], seed=config.seed, num_resamples=config.resamples)
    )
    return {
        **found.about,
        "differences": groups["all"],
        "by_category": {name: groups[name] for name in found.about["categories"]},
        "over_masks": {"A": over_masks(first), "B": over_masks(second)},
    }
