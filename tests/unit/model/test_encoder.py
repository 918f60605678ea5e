"""The written-out forward pass against that of transformers, executed in every way."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import BertForMaskedLM

from fitb.model.attention import attend, choose
from fitb.model.encoder import Kernels, encode, logits_at
from tests.unit.conftest import tiny_config

ROWS, LENGTH, WIDTH, HEADS, VOCABULARY = 3, 10, 30, 6, 77  # heads of 5: no kernel likes them
EVERY_WAY = [Kernels(*settings) for settings in itertools.product(("sdpa", "eager"), (False, True))]


@pytest.fixture(scope="module")
def model():
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": HEADS}
    form = {"initializer_range": 0.3, "attn_implementation": "eager"}
    config = tiny_config(VOCABULARY, **sizes, **form)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = BertForMaskedLM(config).double().eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 0.0, 0.1)
    return model


@pytest.fixture(scope="module")
def rows():
    draw = torch.Generator().manual_seed(0)
    sizes = torch.tensor([[LENGTH], [7], [4]])
    return torch.randint(5, VOCABULARY, (ROWS, LENGTH), generator=draw), torch.arange(
        LENGTH
    ) < sizes


@pytest.mark.parametrize("kernels", EVERY_WAY, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_states_queries_keys_and_logits_are_those_of_transformers(model, rows, kernels, padded):
    """In float64 to 1e-12: padding heads and vocabulary changes nothing but the order of sums."""
    ids, real = rows
    told = model(ids, attention_mask=real.long() if padded else None, output_hidden_states=True)
    encoded = encode(model, ids, real if padded else None, layers=(3, 1), kernels=kernels)
    shown = real if padded else torch.ones_like(real)
    for ours, number in zip((*encoded.hidden, encoded.last), (0, 3, 1, 3), strict=True):
        assert torch.allclose(ours[shown], told.hidden_states[number][shown], atol=1e-12)
    for (query, key, _), number in zip(encoded.heads, (3, 1), strict=True):
        below, this = told.hidden_states[number - 1], model.bert.encoder.layer[number - 1]
        for ours, name in ((query, "query"), (key, "key")):
            expected = getattr(this.attention.self, name)(below).view(ROWS, LENGTH, HEADS, 5)
            assert torch.allclose(ours.transpose(1, 2)[shown], expected[shown], atol=1e-12)
    slots = torch.tensor([[9, 1, 1], [2, 6, 0], [3, 0, 3]])  # they repeat, in any order
    some = encode(model, ids, real if padded else None, layers=(1,), slots=slots, kernels=kernels)
    assert torch.equal(some.hidden[1], encoded.hidden[2])
    at_slots = encoded.last.gather(1, slots[..., None].expand(-1, -1, WIDTH))
    assert torch.allclose(some.last, at_slots, atol=1e-12)
    logits = logits_at(model, encoded.last, slots, kernels)
    assert logits.shape == (9, 128 if kernels.pad else VOCABULARY)
    at_slots = told.logits.gather(1, slots[..., None].expand(-1, -1, VOCABULARY)).flatten(0, 1)
    assert torch.allclose(logits[:, :VOCABULARY], at_slots, atol=1e-12)
    assert torch.allclose(logits.softmax(-1)[:, :VOCABULARY], at_slots.softmax(-1), atol=1e-12)
    assert (logits.softmax(-1)[:, VOCABULARY:] == 0).all()


def test_padding_gives_every_weight_its_exact_gradient(model, rows):
    found = []
    for kernels in (Kernels(), Kernels(pad=True)):
        encoded = encode(model, *rows, layers=(1, 2), kernels=kernels)
        logits = logits_at(model, encoded.last, torch.tensor([[1], [2], [3]]), kernels)
        logits = logits[:, :VOCABULARY].log_softmax(-1)
        loss = logits.square().sum() + encoded.heads[1][0].square().sum() + encoded.hidden[1].sum()
        parameters = [p for _, p in model.named_parameters()]
        found.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    for plain, padded in zip(*found, strict=True):
        assert plain is not None and torch.allclose(plain, padded, atol=1e-10)


def test_attention_drops_weights_only_when_asked():
    draw = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 3, 8, 4, generator=draw) for _ in range(3))
    sure = [attend(query, key, value, None, 0.5, 0.0, how) for how in ("sdpa", "eager")]
    assert torch.allclose(*sure, atol=1e-6)
    for how in ("sdpa", "eager"):
        torch.manual_seed(0)
        assert not torch.allclose(attend(query, key, value, None, 0.5, 0.5, how), sure[0])


@pytest.mark.parametrize(
    ("wanted", "device", "dtype", "length", "expected"),
    [
        ("auto", "cpu", torch.bfloat16, 128, "eager"),
        ("auto", "cpu", torch.bfloat16, 2048, "eager"),
        ("auto", "cpu", torch.bfloat16, 4096, "sdpa"),
        ("auto", "cpu", torch.float32, 128, "sdpa"),
        ("auto", "cuda", torch.bfloat16, 128, "sdpa"),
        ("sdpa", "cpu", torch.bfloat16, 128, "sdpa"),
        ("eager", "cuda", torch.float16, 2048, "eager"),
    ],
)
def test_unfused_attention_is_chosen_for_bf16_on_a_cpu_alone(
    wanted, device, dtype, length, expected
):
    assert choose(wanted, torch.device(device), dtype, length) == expected


@pytest.mark.parametrize("masked", [False, True])
def test_heads_of_any_size_go_to_a_fused_kernel_on_a_gpu(monkeypatch, masked):
    """With a mask, torch stores L x L scores for heads that are no multiple of 8."""
    given, fused = [], F.scaled_dot_product_attention

    def remembering(query, key, value, **settings):
        given.append([query.shape[-1], key.shape[-1], value.shape[-1], settings["scale"]])
        return fused(query, key, value, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", remembering)
    with FakeTensorMode():
        heads = torch.empty(2, 12, 16, 26, device="cuda", dtype=torch.float16)
        mask = torch.empty(2, 1, 1, 16, device="cuda", dtype=torch.bool) if masked else None
        context = attend(heads, heads, heads, mask, 26**-0.5, 0.0, "sdpa")
    assert context.shape == heads.shape
    assert given == [[32, 32, 32, 26**-0.5]]
