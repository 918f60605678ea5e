"""The objective with tiny BERTs: names, counts, gradients, features, accumulation."""

import pytest
import torch
from torch.nn import functional

from fitb.base.errors import ConfigError
from fitb.config import ObjectiveConfig
from fitb.data.masking import IGNORE_INDEX
from fitb.objective.objective import Objective
from tests.unit.objective.conftest import states_and_scores

TERMS = ("embedding", "hidden", "attention", "relation", "logits", "mlm")
ALL_NAMES = (
    "distill/embedding",
    "distill/hidden/layer_1",
    "distill/hidden/layer_2",
    "distill/attention/layer_1",
    "distill/attention/layer_2",
    "distill/relation/layer_1",
    "distill/relation/layer_2",
    "distill/logits",
    "student/loss_mlm",
    "student/top1",
)


def weights(**changes):
    return ObjectiveConfig(**(dict.fromkeys(TERMS, 0.0) | changes))


def build(student, teacher, config):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        objective = Objective(student, teacher, config)
    return objective, objective.teacher_tap(teacher) if teacher else None


def test_all_terms_have_their_names_and_weights(student, teacher):
    config = weights(embedding=0.5, hidden=2.0, attention=3.0, relation=6.0, logits=4.0, mlm=5.0)
    objective, _ = build(student, teacher, config)
    assert objective.names == ALL_NAMES
    assert objective.weights == (0.5, 2.0, 2.0, 3.0, 3.0, 6.0, 6.0, 4.0, 5.0, 0.0)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_of_weight_zero_is_absent_and_costs_nothing(student, teacher, make_batch, term):
    objective, tap = build(student, teacher, weights(**{term: 2.0}))
    named = [n for n in ALL_NAMES if term in n]
    named += ["student/top1"] if term in ("logits", "mlm") else []
    assert list(objective.names) == named
    batch = make_batch(3)
    features = tap(batch)
    sums = objective(batch, features)
    assert sums.shape == objective.counts(batch).shape == (len(named),)
    assert (features.logits is None) == (term != "logits")
    projected = {"attention": [2, 2], "relation": [3, 3]}.get(term, [])
    assert [len(layer) for layer in features.heads] == projected
    assert (features.hidden == ()) == (term in ("logits", "mlm"))
    num_projections = {"embedding": 1, "hidden": 2}.get(term, 0)
    assert len(objective.projections) == num_projections


@pytest.mark.parametrize("left_out", TERMS)
def test_leaving_a_term_out_changes_no_other(student, teacher, make_batch, left_out):
    batch = make_batch(4)
    sums = {}
    for changes in ({}, {left_out: 0.0}):
        config = ObjectiveConfig(**{"relation": 1.0, **changes})
        objective, tap = build(student, teacher, config)
        for module in objective.projections:
            torch.nn.init.constant_(module.weight, 0.1)
        found = dict(zip(objective.names, objective(batch, tap(batch)).tolist(), strict=True))
        for name, value in found.items():
            assert sums.setdefault(name, value) == value
    assert set(sums) == set(ALL_NAMES)


def test_without_a_teacher_only_plain_mlm_is_trained(student, make_batch):
    objective, _ = build(student, None, ObjectiveConfig(mlm=2.0))
    assert objective.names == ("student/loss_mlm", "student/top1")
    assert objective.weights == (2.0, 0.0)
    assert len(objective.projections) == 0
    batch = make_batch(4)
    used = batch.labels != IGNORE_INDEX
    logits = states_and_scores(student, batch)[2][used.nonzero()[:, 0], batch.slots[used]]
    loss = functional.cross_entropy(logits, batch.labels[used], reduction="sum")
    right = (logits.argmax(-1) == batch.labels[used]).sum().item()
    assert objective(batch, None).tolist() == pytest.approx([loss.item(), right], rel=1e-5)


def test_without_a_teacher_and_without_mlm_there_is_nothing_to_train(student):
    with pytest.raises(ConfigError, match=r"objective\.mlm"):
        Objective(student, None, ObjectiveConfig(mlm=0.0))


def test_counts_are_those_of_cells_that_are_real_and_slots_that_are_used(
    student, teacher, make_batch
):
    batch = make_batch(6)
    real = batch.attention_mask
    tokens, scores = 24 * real.sum(), 3 * (real[:, :, None] * real[:, None, :]).sum()
    slots = (batch.labels != IGNORE_INDEX).sum()
    config = ObjectiveConfig(relation=1.0, relation_heads=2)
    counts = build(student, teacher, config)[0].counts(batch)
    assert counts.dtype == torch.float64
    assert counts.tolist() == [tokens] * 3 + [scores] * 2 + [scores / 3 * 2] * 2 + [slots] * 3


def test_the_teacher_is_frozen_in_eval_mode_and_leaves_no_graph(student, make_bert, make_batch):
    teacher = make_bert(layers=4, width=24, heads=3, seed=2, dropout=0.5)
    teacher.train()
    objective, tap = build(student, teacher, ObjectiveConfig())
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in tap.parameters())
    batch = make_batch(3)
    first, second = tap(batch), tap(batch)
    tensors = [
        [*f.hidden, *(x for layer in f.heads for x in layer), f.logits] for f in (first, second)
    ]
    for a, b in zip(*tensors, strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
    objective.train()
    assert not any(module.training for module in teacher.modules())
    objective(batch, first).sum().backward()
    assert all(p.grad is None for p in teacher.parameters())


def naive_terms(student, teacher, objective, batch, config):
    """Each term's mean by its formula, in float64, with L x L scores and full logits."""
    hidden_s, scores_s, logits_s = states_and_scores(student, batch)
    hidden_t, scores_t, logits_t = states_and_scores(teacher, batch)
    real = batch.attention_mask.bool()
    both = (real[:, None, :, None] & real[:, None, None, :]).expand_as(scores_s[0])
    means = []
    for place, (ours, theirs) in enumerate(((0, 0), (1, 2), (2, 4))):
        projected = hidden_s[ours] @ objective.projections[place].weight.T
        means.append(functional.mse_loss(projected[real], hidden_t[theirs][real]))
    for ours, theirs in ((0, 1), (1, 3)):
        means.append(functional.mse_loss(scores_s[ours][both], scores_t[theirs][both]))
    used, heat = batch.labels != IGNORE_INDEX, config.temperature
    row = used.nonzero()[:, 0]
    ours, theirs = (logits[row, batch.slots[used]] for logits in (logits_s, logits_t))
    soft = functional.cross_entropy(ours / heat, (theirs / heat).softmax(-1)) * heat**2
    return torch.stack([*means, soft, functional.cross_entropy(ours, batch.labels[used])])


def test_every_term_and_gradient_equals_its_formula(student, teacher, make_batch):
    """Models in float64, so only the losses' own fp32 remains: 1e-5 relative."""
    config = ObjectiveConfig(temperature=2.0, embedding=0.3, hidden=0.7, attention=0.2, logits=1.5)
    student, teacher = student.double(), teacher.double().eval()
    objective, tap = build(student, teacher, config)
    objective.double()
    batch = make_batch(5)
    means = objective(batch, tap(batch)) / objective.counts(batch)
    expected = naive_terms(student, teacher, objective, batch, config)
    assert means[:-1].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    scale = torch.tensor(objective.weights, dtype=torch.float64)
    trained = list(objective.parameters())
    ours = torch.autograd.grad((means * scale).sum(), trained, retain_graph=True)
    theirs = torch.autograd.grad((expected * scale[:-1]).sum(), trained)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-7


@pytest.mark.parametrize("form", ["masked_mean", "tinybert_reference"])
def test_four_micro_batches_of_two_are_one_of_eight(student, teacher, make_batch, form):
    """Weights in float64, losses in fp32: 1e-5 relative to the largest entry."""
    config = ObjectiveConfig(form=form, temperature=2.0)
    objective, tap = build(student.double(), teacher.double(), config)
    objective.double()
    batch = make_batch(8)
    counts = objective.counts(batch)
    scale = torch.tensor(objective.weights, dtype=torch.float64) / counts
    found = []
    for size in (8, 2):
        objective.zero_grad()
        sums = torch.zeros(len(counts), dtype=torch.float64)
        for begin in range(0, 8, size):
            part = batch.part(begin, begin + size)
            terms = objective(part, tap(part))
            (terms * scale).sum().backward()
            sums += terms.detach().double()
        found.append((sums / counts, [p.grad.clone() for p in objective.parameters()]))
    (whole, whole_gradients), (parts, part_gradients) = found
    assert parts.tolist() == pytest.approx(whole.tolist(), rel=1e-5)
    for a, b in zip(part_gradients, whole_gradients, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-9


def test_a_batch_without_any_slot_still_gives_every_parameter_a_gradient(
    student, teacher, make_batch
):
    objective, tap = build(student, teacher, ObjectiveConfig())
    batch = make_batch(3)
    batch.labels[:] = IGNORE_INDEX
    sums = dict(zip(objective.names, objective(batch, tap(batch)), strict=True))
    assert all(sums[name].item() == 0 for name in ALL_NAMES[-3:])
    sum(sums.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
