"""First weights of a student that begins from its teacher, and what the terms start at."""

from __future__ import annotations

import logging
from typing import Any

import torch

from fitb.base.world import World
from fitb.config import Config
from fitb.data.masking import Vocabulary
from fitb.evaluation.count import choose_rows, masked_batch
from fitb.model.from_teacher import take_weights
from fitb.model.layer_map import resolve
from fitb.objective.objective import Objective, Tap
from fitb.rundir.writer import RunDir
from fitb.shards.shard_set import ShardSet
from fitb.training.collectives import on_main

logger = logging.getLogger(__name__)
_ROWS = 8  # on which the terms are measured


def begin_from_teacher(
    objective: Objective,
    teacher: Tap | None,
    shards: ShardSet,
    tokenizer: Any,
    config: Config,
    run: RunDir,
    world: World,
) -> None:
    """Set the student's first weights, and log them as the event `begin`. Collective.

    Args:
        objective: student with random weights, and projections.
        teacher: its teacher.
        shards: split whose rows the terms are measured on.
        tokenizer: tokenizer of the shards.
    """
    assert teacher is not None  # as the configuration has checked
    student, depth = objective.student.model, teacher.model.config.num_hidden_layers
    wanted = config.model.init_layers
    layers = resolve(wanted, student.config.num_hidden_layers, depth, "model.init_layers")
    basis, left = take_weights(student, teacher.model, layers)
    if basis is not None:
        objective.begin_projections(basis)

    def first_terms() -> dict[str, float]:
        rows, vocabulary = choose_rows(shards.num_rows, _ROWS), Vocabulary.of(tokenizer)
        version = config.algorithms.masks
        batch, _ = masked_batch(shards, rows, vocabulary, config.mask, config.seed, version=version)
        with torch.no_grad():
            sums = objective(batch, teacher(batch) if objective.asks_teacher else None)
        means = (sums / objective.counts(batch).clamp(min=1)).tolist()
        return {name: round(mean, 6) for name, mean in zip(objective.names, means, strict=True)}

    terms = on_main(first_terms, world)
    same = student.config.hidden_size == teacher.model.config.hidden_size
    copied = list(layers) if same else []
    logger.info("student begins from the teacher, with layers %s: %s", copied, terms)
    if left and world.is_main:
        logger.warning("not taken from the teacher: %s", "; ".join(left))
    run.event("begin", layers=copied, left=left, terms=terms)
