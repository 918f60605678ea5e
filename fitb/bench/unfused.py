"""The unfused baseline of `fitb bench step`: the same objective, written naively.

It materialises the L x L attention scores and compares them directly, runs both MLM heads at every
position with a softmax over all of them, and compiles nothing. Its terms, weights and counts are
those of fitb.objective.objective, and its losses are equal to rounding.

Legend: B rows, L length, H heads, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fitb.data.batch import Batch
from fitb.data.masking import IGNORE_INDEX
from fitb.objective.objective import Objective


@dataclass(frozen=True)
class UnfusedFeatures:
    """All activations that the objective compares, in the model's dtype.

    Args:
        hidden: (B, L, D) each: the embedding output, then the output of each layer.
        scores: (B, H, L, L) each: attention scores before softmax of each layer.
        logits: (B, L, V) of the MLM head at every position.
    """

    hidden: list[torch.Tensor]
    scores: list[torch.Tensor]
    logits: torch.Tensor

    def part(self, begin: int, end: int, num_rows: int) -> UnfusedFeatures:
        assert (begin, end) == (0, num_rows), (
            "the unfused baseline asks the teacher per micro-batch"
        )
        return self


class UnfusedTeacher(nn.Module):
    """A frozen teacher that returns all activations.

    Args:
        model: BertForMaskedLM; its parameters stop requiring gradients.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()

    def forward(self, batch: Batch) -> UnfusedFeatures:
        return _features(self.model, batch)


class UnfusedObjective(nn.Module):
    """The student and projections of an objective, with unfused terms.

    Args:
        objective: of form masked_mean, with a teacher, all five terms and temperature 1.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.student, self.projections = objective.student, objective.projections
        self.names, self.weights = objective.names, objective.weights
        self.counts, self._layers = objective.counts, objective.layers

    def forward(self, batch: Batch, teacher: UnfusedFeatures) -> torch.Tensor:
        student = _features(self.student.model, batch)
        mask = batch.attention_mask
        pairs = (mask[:, None, :, None] * mask[:, None, None, :]).float()
        sums = []
        for projection, ours, theirs in zip(
            self.projections, range(len(self._layers) + 1), (0, *self._layers), strict=True
        ):
            difference = projection(student.hidden[ours]).float() - teacher.hidden[theirs].float()
            sums.append((difference**2 * mask[..., None].float()).sum())
        for ours, theirs in zip(range(len(self._layers)), self._layers, strict=True):
            difference = student.scores[ours].float() - teacher.scores[theirs - 1].float()
            sums.append((difference**2 * pairs).sum())
        labels = _dense_labels(batch)
        soft = teacher.logits.float().softmax(-1)
        per_position = -(soft * student.logits.float().log_softmax(-1)).sum(-1)
        sums.append((per_position * (labels != IGNORE_INDEX)).sum())
        flat = student.logits.flatten(0, 1).float()
        sums.append(F.cross_entropy(flat, labels.flatten(), reduction="sum"))
        sums.append(torch.zeros_like(sums[0]))  # no accuracy is counted
        return torch.stack(sums)


def _features(model: Any, batch: Batch) -> UnfusedFeatures:
    bias = (1 - batch.attention_mask[:, None, None, :].to(model.dtype)) * -10_000.0
    hidden, scores = [model.bert.embeddings(batch.input_ids)], []
    for layer in model.bert.encoder.layer:
        state = hidden[-1]
        this = layer.attention.self
        query, key, value = (
            projection(state).unflatten(-1, (this.num_attention_heads, -1)).transpose(1, 2)
            for projection in (this.query, this.key, this.value)
        )
        score = query @ key.mT / math.sqrt(query.shape[-1])
        context = this.dropout((score + bias).softmax(-1)) @ value
        between = layer.attention.output(context.transpose(1, 2).flatten(2), state)
        hidden.append(layer.output(layer.intermediate(between), between))
        scores.append(score)
    return UnfusedFeatures(hidden, scores, model.cls(hidden[-1]))


def _dense_labels(batch: Batch) -> torch.Tensor:
    """(B, L) int64: the label at each masked position, IGNORE_INDEX elsewhere."""
    used = batch.labels != IGNORE_INDEX
    labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
    rows = torch.arange(len(labels), device=labels.device)[:, None].expand_as(batch.slots)
    labels[rows[used], batch.slots[used]] = batch.labels[used]
    return labels
