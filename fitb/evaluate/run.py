"""Evaluate a model on fixed masks, beside what it is held against, on some sets of rows."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from typing import Any

import torch

from fitb.evaluate.baselines import count_tokens, drift, untrained
from fitb.evaluate.categories import GROUPS
from fitb.evaluate.config import EvaluateConfig
from fitb.evaluate.counts import RowCounts
from fitb.evaluate.measure import EvaluationSet, Measured, device_of, load, measure
from fitb.evaluate.metrics import metrics_of, spread, summaries
from fitb.evaluate.ranks import Ranks, joined
from fitb.evaluate.score import Bert, Predictor, Unigram
from fitb.model.load import num_parameters
from fitb.model.loaded import Loaded
from fitb.model.positions import KEY, trained_length
from fitb.shards.shard_set import ShardSet

ROLES = ("model", "unigram", "untrained", "frozen", "control", "teacher")  # rows of the table


def evaluate(config: EvaluateConfig, ranks: Ranks | None = None) -> dict[str, Any]:
    """Evaluate `config.model`, in one process or in all that a launcher started.

    Args:
        ranks: that have joined already.
    Returns: JSON-able: `sets`: for each its rows, and for each model its metrics (value, low,
        high), by category too, and their spread over masks; `metrics`: those of the model on the
        first set; nothing on ranks other than 0.
    Raises: ContractError where a model does not fit the shards or has no trained MLM head.
    """
    if ranks is None:
        with joined(os.environ) as found:
            return evaluate(config, found)
    sets, loaded = load(config, ranks)
    if config.baselines:
        fresh = untrained(loaded["model"].model, config.seed)
        loaded["untrained"] = Loaded(fresh, "random weights")
    device = device_of(ranks)
    for each in loaded.values():
        torch.nn.Module.to(each.model, device)
    measured = {}
    for each_set in sets:
        predictors: dict[str, Predictor] = {n: Bert(each.model) for n, each in loaded.items()}
        if config.baselines:
            predictors["unigram"] = _unigram(config, each_set, ranks, device)
        ordered = {role: predictors[role] for role in ROLES if role in predictors}
        measured[each_set.name] = measure(config, each_set, ordered, ranks)
    if not ranks.world.is_main:
        return {}
    added = len(sets[0].shards.manifest["tokenizer"].get("added", ()))
    by_set = {name: _summary(config, found) for name, found in measured.items()}
    result = {
        "model": loaded["model"].source,
        "models": {
            role: {
                "source": each.source,
                "num_parameters": num_parameters(each.model),
                KEY: trained_length(each.model.config),
            }
            for role in ROLES
            if role in loaded and (each := loaded[role])
        },
        **settings_of(config),
        "metrics": next(iter(by_set.values()))["models"]["model"]["metrics"],
        "sets": by_set,
        "drift": drift(loaded["frozen"].model, loaded["model"].model, added)
        if "frozen" in loaded
        else None,
    }
    return dict(finite(result))


def settings_of(config: Any) -> dict[str, Any]:
    """Return what every number depends on besides models and rows."""
    names = ("seed", "masks", "resamples", "batch")
    return {"mask": asdict(config.mask), **{name: getattr(config, name) for name in names}}


def finite(value: Any) -> Any:
    """Return a JSON-able value with null for what is no number: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unigram(
    config: EvaluateConfig, where: EvaluationSet, ranks: Ranks, device: torch.device
) -> Unigram:
    train = ShardSet.open(where.where, "train")
    counts = count_tokens(train, where.vocabulary, config.unigram_rows, ranks)
    return Unigram(counts, device)


def _summary(config: EvaluateConfig, found: Measured) -> dict[str, Any]:
    """Return a set and every model's metrics on it."""
    told = ["all", *found.about["categories"]]
    models = {}
    for role, counts in found.counts.items():
        by_group = summaries(counts[0], config.seed, config.resamples)
        groups = {
            name: {metric: asdict(interval) for metric, interval in intervals.items()}
            for name, intervals in zip(GROUPS, by_group, strict=True)
        }
        models[role] = {
            "metrics": groups["all"],
            "categories": {name: groups[name] for name in told[1:]},
            "over_masks": over_masks(counts),
            "tokens_per_s": found.tokens_per_s[role],
        }
    return {**found.about, "models": models}


def over_masks(counts: list[RowCounts]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation of each metric over masks, all words."""
    values = [metrics_of(each.totals()[0]) for each in counts]
    return {name: spread([float(value[name]) for value in values]) for name in values[0]}
