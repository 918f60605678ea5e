"""A teacher in the form that multiplies fastest says what it said before."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import BertForMaskedLM

from fitb.base.errors import ConfigError
from fitb.model.encoder import encode, logits_at
from fitb.model.packed_linear import Float8Linear, PackedLinear, can_pack, pack, to_float8
from tests.unit.conftest import tiny_config

CPU = torch.device("cpu")
packs = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this torch has no oneDNN")


@pytest.fixture
def model():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    config = tiny_config(70, **sizes, max_position_embeddings=16, initializer_range=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return BertForMaskedLM(config).eval().requires_grad_(False)


def answers(model):
    ids = torch.arange(5, 25).reshape(2, 10)
    encoded = encode(model, ids, None, layers=(1, 2))
    heads = [state for layer in encoded.heads for state in layer]
    return [*encoded.hidden, *heads, logits_at(model, encoded.last, torch.tensor([[1], [4]]))]


@packs
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_packed_teacher_says_the_same_to_rounding(model, dtype, tolerance):
    if not can_pack(CPU, dtype):
        pytest.skip(f"this processor multiplies no {dtype}")
    plain = answers(copy.deepcopy(model).to(dtype))
    model.to(dtype)
    pack(model)
    kinds = [type(module) for module in model.modules()]
    assert torch.nn.Linear not in kinds
    assert kinds.count(PackedLinear) == 2 * 6 + 2
    for ours, theirs in zip(answers(model), plain, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@packs
def test_another_activation_than_gelu_stays_where_it_is(model):
    model.config.hidden_act = "relu"
    for layer in model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.ReLU()
    plain = answers(model)
    pack(model)
    for ours, theirs in zip(answers(model), plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_eight_bits_leave_each_answer_within_a_tenth_and_the_head_as_it_was(model):
    """e4m3 keeps 3 bits of the fraction: products of 32 terms are off by some 3 %."""
    plain = answers(model)
    to_float8(model, CPU)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(Float8Linear) == 2 * 6
    assert isinstance(model.cls.predictions.decoder, torch.nn.Linear)
    assert torch.equal(answers(model)[0], plain[0])  # the embeddings are not multiplied
    for ours, theirs in zip(answers(model)[1:], plain[1:], strict=True):
        assert 0 < (ours - theirs).norm() <= 0.1 * theirs.norm()


def test_a_width_that_8_bit_products_do_not_take_is_refused(model):
    model.config.hidden_size = 312
    with pytest.raises(ConfigError, match="multiples of 16; this teacher has 312 and 48"):
        to_float8(model, CPU)


@packs
def test_a_rounded_teacher_is_packed_where_it_is_not_rounded(model):
    to_float8(model, CPU)
    rounded = answers(model)
    pack(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(Float8Linear) == 2 * 6
    assert kinds.count(PackedLinear) == 2  # both maps of the head
    for ours, theirs in zip(answers(model), rounded, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_an_eight_bit_map_equals_its_formula():
    draw = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(16, 32)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(32, 16, generator=draw))
    inputs = torch.randn(2, 5, 16, generator=draw)
    inputs[1, 2] *= 1000  # a token of another size does not spoil the others

    def rounded(values):
        scale = values.abs().amax(-1, keepdim=True) / 448
        return (values / scale).to(torch.float8_e4m3fn).double() * scale

    expected = rounded(inputs) @ rounded(linear.weight.detach()).mT + linear.bias
    error = (Float8Linear(linear)(inputs) - expected).abs().amax(-1) / expected.abs().amax(-1)
    assert error.max() < 1e-5
