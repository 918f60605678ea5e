"""The preset `tinybert-reference` against the loss of the original general distillation.

Written from the published description: scores carry -10000 on padded key columns, everything at
most -100 is set to zero in both models, all means run over padding too, and one linear map with a
bias serves the embeddings and every layer. Tolerance: 1e-5 relative in fp32.
"""

import pytest
import torch
from torch.nn import functional

from fitb.config import ObjectiveConfig
from fitb.config.parser import resolve_resource
from fitb.objective.objective import Objective
from tests.unit.objective.conftest import states_and_scores


def original_loss(student, teacher, fit_dense, batch):
    hidden_s, scores_s, _ = states_and_scores(student, batch)
    with torch.no_grad():
        hidden_t, scores_t, _ = states_and_scores(teacher, batch)
    per_block = len(scores_t) // len(scores_s)

    def zeroed(score):
        return torch.where(score <= -1e2, torch.zeros_like(score), score)

    attention = [
        functional.mse_loss(zeroed(ours), zeroed(scores_t[i * per_block + per_block - 1]))
        for i, ours in enumerate(scores_s)
    ]
    hidden = [
        functional.mse_loss(fit_dense(ours), hidden_t[i * per_block])
        for i, ours in enumerate(hidden_s)
    ]
    return hidden, attention


def test_every_term_and_gradient_equals_the_original(student, teacher, make_batch):
    reference = ObjectiveConfig(logits=0.0, mlm=0.0, form="tinybert_reference")
    objective = Objective(student, teacher, reference)
    tap = objective.teacher_tap(teacher)
    batch = make_batch(5)
    assert int(batch.attention_mask.sum()) < batch.attention_mask.numel()
    means = objective(batch, tap(batch)) / objective.counts(batch)
    (shared,) = objective.projections
    assert shared.bias is not None
    hidden, attention = original_loss(student, teacher, shared, batch)
    assert means.tolist() == pytest.approx([x.item() for x in hidden + attention], rel=1e-5)
    trained = {n: p for n, p in objective.named_parameters() if ".cls." not in n}
    ours, theirs = (
        torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for loss in (means.sum(), sum(hidden + attention))
    )
    for name, a, b in zip(trained, ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert (a - b).abs().max() <= 2e-5 * b.abs().max() + 1e-6, name


def test_the_preset_asks_for_this_form():
    text = resolve_resource("tinybert-reference", "fitb.presets", ".yaml").read_text()
    assert "form: tinybert_reference" in text
