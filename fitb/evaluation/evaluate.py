"""Evaluate a model next to baselines, with masks fixed by a seed, on one or several sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fitb.base.fsio import finite
from fitb.evaluation.baselines import count_tokens, drift, untrained
from fitb.evaluation.count import choose_rows
from fitb.evaluation.data_parallel import Ranks, joined
from fitb.evaluation.evaluate_config import ROLES, EvaluateConfig
from fitb.evaluation.measure import Measured, device_of, load, measure, models_and_settings
from fitb.evaluation.metrics import by_group, over_masks, summaries, text_metrics
from fitb.evaluation.pseudo_perplexity import TextCounts, count_texts
from fitb.evaluation.score import Bert, Predictor, Unigram
from fitb.model.loaded import Loaded
from fitb.shards.shard_set import ShardSet


def evaluate(config: EvaluateConfig, ranks: Ranks | None = None) -> dict[str, Any]:
    """Evaluate `config.model`, on all ranks of a launcher or in this process.

    Args:
        config: configuration with one model.
        ranks: ranks that have joined already; None joins those of the environment.
    Returns: a JSON-serialisable dict. `sets` has for each set its rows, and for each model its
        metrics (value, low, high), by category too, and their spread over masks; `metrics` are
        those of the model on the first set. Empty on ranks other than 0.
    Raises: ContractError if a model does not match the shards or has no trained MLM head.
    """
    if ranks is None:
        with joined(os.environ) as together:
            return evaluate(config, together)
    sets, loaded = load(config, ranks)
    if config.baselines:
        fresh = untrained(loaded["model"].model, config.seed)
        loaded["untrained"] = Loaded(fresh, "random weights")
    predictors: dict[str, Predictor] = {role: Bert(each.model) for role, each in loaded.items()}
    summaries_by_set = {}
    for each in sets:
        if config.baselines:
            train = ShardSet.open(each.where, "train")
            counts = count_tokens(train, each.vocabulary, config.unigram_rows, ranks)
            predictors["unigram"] = Unigram(counts, device_of(ranks))
        ordered = {role: predictors[role] for role in ROLES if role in predictors}
        found = measure(config, each, ordered, ranks)
        texts = {}
        if config.pseudo_rows:
            rows = choose_rows(each.shards.num_rows, config.pseudo_rows)
            texts = count_texts(each, rows, ordered, ranks, config.batch)
        if ranks.world.is_main:
            summaries_by_set[each.name] = _summary(config, found, texts)
    if not ranks.world.is_main:
        return {}
    before, after = loaded.get("frozen"), loaded["model"]
    added = len(sets[0].shards.manifest["tokenizer"].get("added", ()))
    result = {
        "model": after.source,
        **models_and_settings(config, {role: loaded[role] for role in ROLES if role in loaded}),
        "metrics": next(iter(summaries_by_set.values()))["models"]["model"]["metrics"],
        "sets": summaries_by_set,
        "drift": drift(before.model, after.model, added) if before else None,
    }
    return dict(finite(result))


def _summary(
    config: EvaluateConfig, found: Measured, texts: Mapping[str, TextCounts]
) -> dict[str, Any]:
    """Return the description of a set with every model's metrics on it."""
    models = {}
    for role, counts in found.counts.items():
        groups = by_group(summaries(counts[0], config.seed, config.resamples))
        models[role] = {
            "metrics": groups["all"],
            "categories": {name: groups[name] for name in found.about["categories"]},
            "over_masks": over_masks(counts),
            "tokens_per_s": found.tokens_per_s[role],
        }
        if role in texts:
            models[role]["texts"] = _of_texts(config, texts[role])
    return {**found.about, "models": models}


def _of_texts(config: EvaluateConfig, counts: TextCounts) -> dict[str, Any]:
    """Return pseudo-perplexity and bits per byte, with what they were measured on."""
    sums = np.stack([counts.nats, counts.tokens, counts.num_bytes], axis=1).astype(np.float64)
    metrics = text_metrics(counts.documents, sums, config.seed, config.resamples)
    return {
        **{name: asdict(interval) for name, interval in metrics.items()},
        "num_tokens": int(counts.tokens.sum()),
        "num_bytes": int(counts.num_bytes.sum()),
    }
