"""Losses and their gradients against float64 formulas, with garbage where nothing counts.

Tolerances: a value 1e-6 relative, a gradient 1e-5 relative to its largest entry.
"""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from fitb.data.masking import IGNORE_INDEX
from fitb.objective import attention, losses
from fitb.objective.attention import attention_loss, relation_loss
from fitb.objective.losses import hidden_loss, slot_losses

GARBAGE = [1e4, -1e4, 3e38, float("inf"), float("nan")]
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
LABELS = torch.tensor([3, IGNORE_INDEX, 0, 6, IGNORE_INDEX, 2])
REAL, USED = MASK.bool(), LABELS != IGNORE_INDEX


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def soft_loss(student, teacher, labels, temperature):
    return slot_losses(student, teacher, labels, temperature)[0]


def hard_loss(student, labels):
    return slot_losses(student, None, labels, 1.0)[1]


def naive_hidden(student, teacher):
    return (student[REAL] - teacher[REAL]).square().sum()


def naive_soft(student, teacher, temperature):
    log_p = (student[USED] / temperature).log_softmax(1)
    q = (teacher.detach()[USED] / temperature).softmax(1)
    return -(temperature**2) * (q * log_p).sum()


def naive_mlm(student):
    return functional.nll_loss(student[USED].log_softmax(1), LABELS[USED], reduction="sum")


def naive_attention(query_s, key_s, query_t, key_t, queries):
    """Equation 7 with both L x L matrices written out."""
    scores_s = query_s @ key_s.mT / math.sqrt(query_s.shape[-1])
    scores_t = query_t @ key_t.mT / math.sqrt(query_t.shape[-1])
    counted = queries[:, None, :, None] * MASK[:, None, None, :]
    return ((scores_t - scores_s).square() * counted).sum()


def naive_relation(states, num_heads):
    """Products between tokens written out, of heads split anew; three of each model."""
    split = [torch.stack(torch.cat(each.unbind(1), -1).chunk(num_heads, -1), 1) for each in states]
    pairs = zip(split[:3], split[3:], strict=True)
    return sum(naive_attention(ours, ours, theirs, theirs, MASK) for ours, theirs in pairs)


# Loss of what counts and the inputs, its reference, shapes, where nothing counts, garbage there.
PADDING, UNUSED = (MASK, ~REAL[..., None], GARBAGE), (LABELS, ~USED[:, None], GARBAGE[:3])
HEADS = MASK, ~REAL[:, None, :, None], GARBAGE
CASES = {
    "hidden": (
        lambda mask, s, t: hidden_loss(s, t, mask), naive_hidden, [(3, 5, 4)] * 2, *PADDING
    ),
    "mlm": (lambda labels, s: hard_loss(s, labels), naive_mlm, [(6, 7)], *UNUSED),
}  # fmt: skip
for heat in (0.5, 1.0, 3.0):
    CASES[f"logits at {heat}"] = (
        lambda labels, s, t, heat=heat: soft_loss(s, t.detach(), labels, heat),
        lambda s, t, heat=heat: naive_soft(s, t, heat),
        [(6, 7)] * 2, *UNUSED,
    )  # fmt: skip
for size_s, size_t in ((4, 4), (3, 8), (8, 2), (1, 16)):
    CASES[f"attention of {size_s} and {size_t}"] = (
        lambda mask, *qk: attention_loss(qk[:2], qk[2:], mask, mask),
        lambda *qk: naive_attention(*qk, MASK),
        [(3, 2, 5, size_s)] * 2 + [(3, 2, 5, size_t)] * 2, *HEADS,
    )  # fmt: skip
for (heads_s, size_s, heads_t, size_t), number in itertools.product(
    ((2, 6, 4, 6), (3, 4, 2, 6)), (1, 3, 6)
):
    CASES[f"{number} relations of {heads_s} x {size_s} and {heads_t} x {size_t}"] = (
        lambda mask, *qkv, number=number: relation_loss(qkv[:3], qkv[3:], number, mask),
        lambda *qkv, number=number: naive_relation(qkv, number),
        [(3, heads_s, 5, size_s)] * 3 + [(3, heads_t, 5, size_t)] * 3, *HEADS,
    )  # fmt: skip
CASES["attention of all queries"] = (
    lambda mask, *qk: attention_loss(qk[:2], qk[2:], None, mask),
    lambda *qk: naive_attention(*qk, torch.ones_like(MASK)),
    [(3, 2, 5, 4)] * 4, *HEADS[:2], [],
)  # fmt: skip


def with_gradients(loss, inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("name", CASES)
def test_a_loss_and_its_gradients_equal_the_formula(name):
    loss, naive, shapes, counted, *_ = CASES[name]
    inputs = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    value, found = with_gradients(lambda *leaves: loss(counted, *leaves), inputs)
    expected, wanted = with_gradients(naive, [x.double() for x in inputs])
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours is theirs is None or (
            (ours.double() - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        )


@pytest.mark.parametrize("name", CASES)
def test_garbage_where_nothing_counts_changes_no_loss_and_no_gradient_and_gets_none(name):
    """In padding anything; a slot that is unused shows [CLS], whose logits are finite."""
    loss, _, shapes, counted, cells, garbage = CASES[name]
    inputs = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    clean, *dirty = (
        with_gradients(
            lambda *leaves: loss(counted, *leaves), [x.masked_fill(cells, value) for x in inputs]
        )
        for value in (0.0, *garbage)
    )
    for value, found in dirty:
        assert torch.equal(value, clean[0])
        for a, b in zip(clean[1], found, strict=True):
            assert a is b is None or (torch.equal(a, b) and (b[cells.expand_as(b)] == 0).all())


@pytest.mark.parametrize("name", CASES)
def test_nothing_that_counts_gives_a_zero_that_has_a_graph(name):
    loss, _, shapes, counted, *_ = CASES[name]
    nothing = torch.full_like(counted, IGNORE_INDEX if counted is LABELS else 0)
    inputs = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    value, found = with_gradients(lambda *leaves: loss(nothing, *leaves), inputs)
    assert value == 0
    assert all(gradient is None or (gradient == 0).all() for gradient in found)


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-4, 1e-6])
def test_a_student_near_its_teacher_loses_no_digits(distance):
    """As one whose layers were copied; the loss and both gradients to 1e-6, relative."""
    teacher = [randn(2, 3, 64, 16, seed=i) for i in range(2)]
    student = [each + distance * randn(2, 3, 64, 16, seed=9 + i) for i, each in enumerate(teacher)]
    ours, found = with_gradients(
        lambda *qk: attention_loss(qk, tuple(teacher), None, None), student
    )

    def naive(query, key):
        query_t, key_t = (each.double() for each in teacher)
        return (query_t @ key_t.mT / 4 - query @ key.mT / 4).square().sum()

    expected, wanted = with_gradients(naive, [each.double() for each in student])
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, double in zip(found, wanted, strict=True):
        assert (gradient.double() - double).norm() <= 1e-6 * double.norm()


def test_a_copy_of_the_teacher_has_no_loss_and_no_gradient():
    states = tuple(randn(2, 3, 64, 16, seed=i) for i in range(3))
    for loss in (
        lambda *leaves: attention_loss(leaves[:2], states[:2], None, None),
        lambda *leaves: relation_loss(leaves, states, 4, None),
    ):
        value, found = with_gradients(loss, states)
        assert value == 0
        assert all(gradient is None or (gradient == 0).all() for gradient in found)


def test_the_attention_loss_of_old_runs_survives_a_student_near_its_teacher():
    """Cancellation: scores 1 % apart; the loss to 1e-3, its gradient to 2e-5, relative."""
    teacher = [randn(2, 3, 64, 16, seed=i) for i in range(2)]
    query = (teacher[0] + 0.01 * randn(2, 3, 64, 16, seed=9)).requires_grad_()
    mask = torch.ones(2, 64)
    ours = attention_loss((query, teacher[1]), tuple(teacher), mask, mask, version=1)
    double = query.detach().double().requires_grad_()
    difference = (teacher[0].double() - double) @ teacher[1].double().mT / 4
    expected = difference.square().sum()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-3)
    ours.backward()
    expected.backward()
    error = (query.grad - double.grad).norm() / double.grad.norm()
    assert error < 2e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "distance"), [(26, 1), (64, 1), (64, 1e-2), (64, 1e-4), (64, 0)])
def test_the_attention_loss_on_tensor_cores_is_that_of_float64(monkeypatch, dtype, size, distance):
    """Products of 16-bit numbers are exact, their sums in fp32; value and gradients to 1e-2."""
    monkeypatch.setattr(attention, "_for_tensor_cores", lambda states: states.dtype == dtype)
    teacher = [randn(2, 3, 64, 64, seed=i).to(dtype) for i in range(2)]
    student = [randn(2, 3, 64, size, seed=9 + i) for i in range(2)]
    if distance < 1:
        student = [near + distance * far for near, far in zip(teacher, student, strict=True)]
    student = [each.to(dtype) for each in student]
    mask = torch.arange(64) < torch.tensor([[64], [40]])
    ours, found = with_gradients(
        lambda *qk: attention_loss(qk, tuple(teacher), mask, mask), student
    )
    rows = mask[:, None, :, None] * mask[:, None, None, :]

    def naive(query, key):
        query_t, key_t = (each.double() for each in teacher)
        scores = query @ key.mT / size**0.5
        return ((query_t @ key_t.mT / 8 - scores).square() * rows).sum()

    expected, wanted = with_gradients(naive, [each.double() for each in student])
    assert 0 <= ours.item() == pytest.approx(expected.item(), rel=1e-2)
    for gradient, double in zip(found, wanted, strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - double).norm() <= 1e-2 * double.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("distance", [0.3, 0.03])
def test_its_gradient_survives_on_tensor_cores_where_the_terms_cancel(monkeypatch, dtype, distance):
    """As in the form for heads of unequal sizes, and for runs of before; to 1e-2."""
    monkeypatch.setattr(attention, "_for_tensor_cores", lambda states: states.dtype == dtype)
    teacher = [randn(2, 3, 64, 64, seed=i).to(dtype) for i in range(2)]
    student = [
        (each + distance * randn(2, 3, 64, 64, seed=9 + i)).to(dtype)
        for i, each in enumerate(teacher)
    ]
    _, found = with_gradients(
        lambda *qk: attention_loss(qk, tuple(teacher), None, None, version=1), student
    )

    def naive(query, key):
        query_t, key_t = (each.double() for each in teacher)
        return (query_t @ key_t.mT / 8 - query @ key.mT / 8).square().sum()

    _, wanted = with_gradients(naive, [each.double() for each in student])
    for gradient, double in zip(found, wanted, strict=True):
        assert (gradient.double() - double).norm() <= 1e-2 * double.norm()


def test_attention_loss_is_computed_in_fp32_under_autocast():
    inputs = [randn(2, 2, 5, 4, seed=i).bfloat16() for i in range(4)]
    mask = torch.ones(2, 5)
    plain = attention_loss(inputs[:2], inputs[2:], query_mask=mask, key_mask=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = attention_loss(inputs[:2], inputs[2:], query_mask=mask, key_mask=mask)
    assert cast.dtype == plain.dtype == torch.float32
    assert float(cast) == float(plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_summed_in_fp32(dtype):
    student, teacher = randn(1, 400, 300).to(dtype), randn(1, 400, 300, seed=1).to(dtype)
    value = hidden_loss(student, teacher, torch.ones(1, 400))
    expected = (student.double() - teacher.double()).square().sum()
    assert float(expected) > 65504 * 3  # more than fp16 holds
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    logits = randn(50, 300).to(dtype)
    labels = torch.arange(50)
    value = hard_loss(logits, labels)
    expected = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_one_pass_over_the_logits_gives_what_each_loss_gives_alone(temperature):
    """Whatever the blocks it is done in: gradients bitwise, sums to 1e-6."""
    teacher = randn(6, 7, seed=1)
    found = []
    for block in (1, 14, 1000):
        leaf = randn(6, 7).requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(losses, "_BLOCK", block)
            soft, hard, hits = slot_losses(leaf, teacher, LABELS, temperature)
            (2 * soft + 3 * hard).backward()
        assert soft.item() == pytest.approx(soft_loss(leaf, teacher, LABELS, temperature).item())
        assert hard.item() == pytest.approx(hard_loss(leaf, LABELS).item())
        assert hits.item() == (leaf.argmax(1) == LABELS).sum()
        found.append(([soft.item(), hard.item()], leaf.grad))
    for sums, gradient in found[1:]:
        assert sums == pytest.approx(found[0][0], rel=1e-6)
        assert torch.equal(gradient, found[0][1])


def test_logits_that_tie_are_no_hit_unless_the_first_of_them_is_the_true_token():
    tied = torch.zeros(3, 7)
    assert slot_losses(tied, None, torch.tensor([0, 3, 6]), 1.0)[2].item() == 1
