"""A student that begins from its teacher."""

import pytest
import torch
from transformers import BertForMaskedLM

from fitb.model.from_teacher import _sums, principal_basis, take_weights
from tests.unit.conftest import tiny_config


def bert(layers=4, width=24, heads=3, inner=48, seed=0, positions=20, **more):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        sizes |= {"intermediate_size": inner, "max_position_embeddings": positions}
        model = BertForMaskedLM(tiny_config(60, initializer_range=0.2, **sizes, **more)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


IDS = torch.randint(0, 60, (3, 17), generator=torch.Generator().manual_seed(1))


def test_a_student_of_all_layers_is_its_teacher():
    student, teacher = bert(seed=1), bert()
    basis, left = take_weights(student, teacher, (1, 2, 3, 4))
    assert left == [] and torch.equal(basis, torch.eye(24))
    assert torch.equal(student(IDS).logits, teacher(IDS).logits)


def test_layers_are_copied_from_where_they_are_wanted():
    student, teacher = bert(layers=2, seed=1), bert()
    take_weights(student, teacher, (4, 2))
    for mine, number in zip(student.bert.encoder.layer, (4, 2), strict=True):
        theirs = teacher.bert.encoder.layer[number - 1].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "named", "kept"),
    [
        ({"heads": 4}, "attention of the layers: the student has 4 heads", "attention.self.query"),
        ({"inner": 32}, "feed-forward part of the layers: the student's is 32", "output.dense"),
        ({"positions": 30}, "position_embeddings 20 to 29", None),
        ({"hidden_act": "relu"}, "hidden_act gelu", None),
    ],
)
def test_what_does_not_fit_stays_random_and_is_named(changes, named, kept):
    student, teacher = bert(seed=1, **changes), bert()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    _, left = take_weights(student, teacher, (1, 2, 3, 4))
    assert len(left) == 1 and left[0].startswith(named)
    if kept:
        name = f"bert.encoder.layer.0.{kept}.weight"
        assert torch.equal(student.state_dict()[name], before[name])
    name = "bert.encoder.layer.0.output.LayerNorm.bias"
    assert torch.equal(student.state_dict()[name], before[name]) == ("inner" in changes)


def test_a_wider_student_takes_nothing_and_says_so():
    student = bert(width=48, seed=1)
    before = [value.clone() for value in student.parameters()]
    basis, left = take_weights(student, bert(), (1, 2, 3, 4))
    assert basis is None and "48 wide" in left[0]
    assert all(map(torch.equal, before, student.parameters()))


def test_embeddings_of_a_narrower_student_lose_the_smallest_components_and_nothing_else():
    """Before LayerNorm; of all sums of embeddings, against the eigenvalues in float64."""
    student, teacher = bert(layers=2, width=8, heads=2, seed=1), bert()
    basis, left = take_weights(student, teacher, (2, 4))
    assert ["layers" in each for each in left] == [True]
    assert torch.allclose(basis.T @ basis, torch.eye(8), atol=1e-6)
    sums = _sums(teacher).double()
    lost = (_sums(student).double() @ basis.T.double() - sums).square().sum(1).mean()
    dropped = torch.linalg.eigvalsh(sums.T @ sums / len(sums))[:-8].sum()
    assert lost.item() == pytest.approx(dropped.item(), rel=1e-5)
    ours = teacher.bert.embeddings(IDS)
    theirs = student.bert.embeddings(IDS) @ basis.T
    assert (theirs - ours).square().mean() < 0.5 * ours.square().mean()


def test_layernorm_of_a_narrower_student_removes_the_smallest_component_alone():
    rows = torch.randn(200, 24, generator=torch.Generator().manual_seed(2))
    rows *= torch.linspace(3, 0.1, 24)
    basis = principal_basis(rows, 8)
    coordinates = rows.double() @ basis.double()
    centred = coordinates - coordinates.mean(1, keepdim=True)
    values = torch.linalg.eigvalsh(rows.double().T @ rows.double()).flip(0)
    assert centred.square().sum().item() == pytest.approx(values[:7].sum().item(), rel=1e-5)
