"""The unfused baseline of `fitb bench step` computes what the objective computes."""

import pytest
import torch

from fitb.bench.unfused import UnfusedObjective, UnfusedTeacher
from fitb.config import ObjectiveConfig
from fitb.objective.objective import Objective


def test_the_unfused_baseline_has_the_same_terms_and_gradients(student, teacher, make_batch):
    """In fp32, with padding: each sum to 1e-5, each gradient to 1e-4 of its largest entry."""
    batch = make_batch(5, seed=2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        objective = Objective(student, teacher, ObjectiveConfig())
    features = objective.teacher_tap(teacher)(batch)
    plain, plain_features = UnfusedObjective(objective), UnfusedTeacher(teacher)(batch)
    trained = [p for p in objective.parameters() if p.requires_grad]
    found = []
    for sums in (objective(batch, features), plain(batch, plain_features)):
        gradients = torch.autograd.grad(sums[:-1].sum(), trained, allow_unused=True)
        found.append((sums[:-1].detach(), gradients))  # without the hits, which it does not count
    (ours, gradients), (theirs, plain_gradients) = found
    assert objective.names[-1] == "student/top1"
    assert torch.allclose(ours, theirs, rtol=1e-5)
    for a, b in zip(gradients, plain_gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            # Entries of a gradient that is zero but for rounding have no relative size.
            assert (a - b).abs().max() <= 1e-4 * b.abs().max().clamp(min=1.0)


def test_the_unfused_baseline_cannot_be_asked_for_part_of_its_features(teacher, make_batch):
    features = UnfusedTeacher(teacher)(make_batch(4))
    assert features.part(0, 4, 4) is features
    with pytest.raises(AssertionError, match="per micro-batch"):
        features.part(0, 2, 4)
