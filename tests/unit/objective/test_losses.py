"""Losses and their gradients against float64 loops over cells, with garbage where nothing counts.

Tolerances: a value 1e-6 relative, a gradient 1e-5 relative to its largest entry.
"""

import math

import pytest
import torch

from fitb.data.masking import IGNORE_INDEX
from fitb.objective import losses
from fitb.objective.attention import attention_loss
from fitb.objective.losses import hidden_loss, slot_losses

GARBAGE = [1e4, -1e4, 3e38, float("inf"), float("nan")]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def soft_loss(student, teacher, labels, temperature):
    return slot_losses(student, teacher, labels, temperature)[0]


def hard_loss(student, labels):
    return slot_losses(student, None, labels, 1.0)[1]


def check(ours, inputs, reference):
    """Compare a loss and its gradients with a reference that takes float64 inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    doubles = [x.double().requires_grad_() for x in inputs]
    value, expected = ours(*leaves), reference(*doubles)
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    value.backward()
    expected.backward()
    for leaf, double in zip(leaves, doubles, strict=True):
        error = (leaf.grad.double() - double.grad).abs().max()
        assert error <= 1e-5 * double.grad.abs().max()


def naive_hidden(student, teacher, mask):
    total = torch.zeros((), dtype=torch.float64)
    for b in range(mask.shape[0]):
        for place in range(mask.shape[1]):
            if mask[b, place]:
                for d in range(student.shape[2]):
                    total = total + (student[b, place, d] - teacher[b, place, d]) ** 2
    return total


def naive_soft(student, teacher, labels, temperature):
    total = torch.zeros((), dtype=torch.float64)
    for m in range(len(labels)):
        if labels[m] == IGNORE_INDEX:
            continue
        ours = [x / temperature for x in student[m]]
        theirs = [x / temperature for x in teacher[m]]
        norm_ours = torch.stack(ours).exp().sum()
        norm_theirs = torch.stack(theirs).exp().sum()
        for v in range(student.shape[1]):
            p = theirs[v].exp() / norm_theirs
            total = total - temperature**2 * p * (ours[v].exp() / norm_ours).log()
    return total


def naive_mlm(student, labels):
    total = torch.zeros((), dtype=torch.float64)
    for m in range(len(labels)):
        if labels[m] != IGNORE_INDEX:
            total = total - (student[m, labels[m]].exp() / student[m].exp().sum()).log()
    return total


def naive_attention(query_s, key_s, query_t, key_t, query_mask, key_mask):
    """Equation 7 with both L x L matrices written out."""
    scores_s = query_s @ key_s.transpose(-1, -2) / math.sqrt(query_s.shape[-1])
    scores_t = query_t @ key_t.transpose(-1, -2) / math.sqrt(query_t.shape[-1])
    total = torch.zeros((), dtype=torch.float64)
    for b in range(query_mask.shape[0]):
        for i in range(query_mask.shape[1]):
            for j in range(key_mask.shape[1]):
                if query_mask[b, i] and key_mask[b, j]:
                    total = total + ((scores_t[b, :, i, j] - scores_s[b, :, i, j]) ** 2).sum()
    return total


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
LABELS = torch.tensor([3, IGNORE_INDEX, 0, 6, IGNORE_INDEX, 2])


def test_hidden_loss_equals_a_loop_over_real_tokens():
    student, teacher = randn(3, 5, 4), randn(3, 5, 4, seed=1)
    check(
        lambda s, t: hidden_loss(s, t, MASK),
        [student, teacher],
        lambda s, t: naive_hidden(s, t, MASK),
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_logits_loss_equals_a_loop_over_used_slots(temperature):
    teacher = randn(6, 7, seed=1)
    check(
        lambda s: soft_loss(s, teacher, LABELS, temperature),
        [randn(6, 7)],
        lambda s: naive_soft(s, teacher.double(), LABELS, temperature),
    )


def test_mlm_loss_equals_a_loop_over_used_slots():
    check(lambda s: hard_loss(s, LABELS), [randn(6, 7)], lambda s: naive_mlm(s, LABELS))


@pytest.mark.parametrize(("size_s", "size_t"), [(4, 4), (3, 8), (8, 2), (1, 16)])
def test_attention_loss_equals_the_form_with_both_matrices(size_s, size_t):
    inputs = [randn(3, 2, 5, size, seed=i) for i, size in enumerate([size_s] * 2 + [size_t] * 2)]
    for query_mask in (MASK, torch.ones_like(MASK)):
        check(
            lambda a, b, c, d, q=query_mask: attention_loss(
                (a, b), (c, d), query_mask=q, key_mask=MASK
            ),
            inputs,
            lambda a, b, c, d, q=query_mask: naive_attention(a, b, c, d, q, MASK),
        )


def test_attention_loss_survives_a_student_near_its_teacher():
    """Cancellation: scores 1 % apart; the loss to 1e-3, its gradient to 2e-5, relative."""
    teacher = [randn(2, 3, 64, 16, seed=i) for i in range(2)]
    query = (teacher[0] + 0.01 * randn(2, 3, 64, 16, seed=9)).requires_grad_()
    mask = torch.ones(2, 64)
    ours = attention_loss((query, teacher[1]), tuple(teacher), query_mask=mask, key_mask=mask)
    double = query.detach().double().requires_grad_()
    difference = (teacher[0].double() - double) @ teacher[1].double().mT / 4
    expected = difference.square().sum()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-3)
    ours.backward()
    expected.backward()
    error = (query.grad - double.grad).norm() / double.grad.norm()
    assert error < 2e-5


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


def gradients(loss, *leaves):
    leaves = [leaf.requires_grad_() for leaf in leaves]
    value = loss(*leaves)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves]


PADDED, UNUSED = (MASK == 0)[..., None], (LABELS == IGNORE_INDEX)[:, None]
WHERE_NOTHING_COUNTS = {
    "hidden": (lambda s, t: hidden_loss(s, t, MASK), [(3, 5, 4)] * 2, PADDED),
    "attention": (
        lambda a, b, c, d: attention_loss((a, b), (c, d), MASK, MASK),
        [(3, 2, 5, 3)] * 2 + [(3, 2, 5, 4)] * 2,
        PADDED[:, None],
    ),
    "logits": (lambda s, t: soft_loss(s, t.detach(), LABELS, 2.0), [(6, 7)] * 2, UNUSED),
    "mlm": (lambda s: hard_loss(s, LABELS), [(6, 7)], UNUSED),
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", ["hidden", "attention"])
def test_garbage_in_padding_changes_no_loss_and_no_gradient(name, garbage):
    check_silence(name, garbage)


@pytest.mark.parametrize("garbage", GARBAGE[:3])  # a slot that is unused shows [CLS]: finite
@pytest.mark.parametrize("name", ["logits", "mlm"])
def test_garbage_in_unused_slots_changes_no_loss_and_no_gradient(name, garbage):
    check_silence(name, garbage)


def check_silence(name, garbage):
    """Where nothing counts, nothing changes a loss or its gradients, and none stands there."""
    loss, shapes, cells = WHERE_NOTHING_COUNTS[name]
    inputs = [randn(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    clean, dirty = (
        gradients(loss, *(x.masked_fill(cells, value) for x in inputs)) for value in (0.0, garbage)
    )
    assert torch.equal(clean[0], dirty[0])
    for a, b in zip(clean[1], dirty[1], strict=True):
        assert a is b is None or (torch.equal(a, b) and (b[cells.expand_as(b)] == 0).all())


def test_nothing_that_counts_gives_a_zero_that_has_a_graph():
    nothing = torch.zeros(3, 5)
    labels = torch.full((6,), IGNORE_INDEX)
    states = [randn(3, 2, 5, 4, seed=i) for i in range(4)]
    for loss, leaves in (
        (lambda s: hidden_loss(s, randn(3, 5, 4), nothing), [randn(3, 5, 4, seed=1)]),
        (lambda s: soft_loss(s, randn(6, 7), labels, 2.0), [randn(6, 7, seed=1)]),
        (lambda s: hard_loss(s, labels), [randn(6, 7)]),
        (lambda q, k: attention_loss((q, k), tuple(states[2:]), nothing, nothing), states[:2]),
    ):
        value, found = gradients(loss, *leaves)
        assert float(value) == 0
        assert all((gradient == 0).all() for gradient in found)


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
