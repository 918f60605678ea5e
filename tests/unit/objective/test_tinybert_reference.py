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


def states_and_scores(model, batch):
    """Hidden states 0 .. N and scores of layers 1 .. N, in eager arithmetic."""
    bert, heads = model.bert, model.config.num_attention_heads
    away = (1.0 - batch.attention_mask[:, None, None, :].float()) * -10000.0
    states = bert.embeddings(input_ids=batch.input_ids)
    hidden, scores = [states], []
    for layer in bert.encoder.layer:
        attention = layer.attention.self

        def heads_of(x):
            return x.view(*x.shape[:2], heads, -1).permute(0, 2, 1, 3)

        query, key, value = (
            heads_of(projection(states))
            for projection in (attention.query, attention.key, attention.value)
        )
        score = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + away
        context = (score.softmax(-1) @ value).permute(0, 2, 1, 3).flatten(2)
        attended = layer.attention.output(context, states)
        states = layer.output(layer.intermediate(attended), attended)
        hidden.append(states)
        scores.append(score)
    return hidden, scores


def original_loss(student, teacher, fit_dense, batch):
    hidden_s, scores_s = states_and_scores(student, batch)
    with torch.no_grad():
        hidden_t, scores_t = states_and_scores(teacher, batch)
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


@pytest.fixture
def reference():
    return ObjectiveConfig(logits=0.0, mlm=0.0, form="tinybert_reference")


def test_every_term_and_gradient_equals_the_original(student, teacher, make_batch, reference):
    objective = Objective(student, teacher, reference)
    tap = objective.teacher_tap(teacher)
    batch = make_batch(5)
    assert int(batch.attention_mask.sum()) < batch.attention_mask.numel()
    means = objective(batch, tap(batch)) / objective.counts(batch)
    (shared,) = objective.projections
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


def test_one_map_with_a_bias_serves_the_embeddings_and_every_layer(student, teacher, reference):
    (shared,) = Objective(student, teacher, reference).projections
    assert shared.weight.shape == (24, 12)
    assert shared.bias.shape == (24,)


def test_padding_dilutes_the_original_and_not_the_masked_mean(student, teacher, make_batch):
    batch = make_batch(4)
    found = []
    for form in ("tinybert_reference", "masked_mean"):
        config = ObjectiveConfig(form=form, embedding=0, hidden=0, logits=0, mlm=0)
        counts = Objective(student, teacher, config).counts(batch)
        found.append(counts[0].item() / (3 * 4 * 12 * 12))
    assert found[0] == 1
    assert found[1] < 1


def test_the_preset_asks_for_this_form():
    text = resolve_resource("tinybert-reference", "fitb.presets", ".yaml").read_text()
    assert "form: tinybert_reference" in text
