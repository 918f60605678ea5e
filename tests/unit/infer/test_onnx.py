"""onnxruntime says what PyTorch says; 8-bit products say nearly that."""

import copy
import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, BertModel

from fitb.base.errors import ConfigError, ContractError, DataError, SystemFault
from fitb.corpus.tokenizer import train_tokenizer
from fitb.infer import onnx as ours
from fitb.infer.graph import encoder_products, graph_of
from fitb.infer.onnx import FP32, INT8, OnnxScorer, export_onnx, load_onnx, quantise
from fitb.infer.pytorch import TorchScorer
from fitb.infer.scorer import load_scorer

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(make_folder, tokenizer):
    """A model, with its weights spread so that heads attend to few tokens, in both forms."""
    made = make_folder()
    export_onnx(BertForMaskedLM.from_pretrained(made).eval(), tokenizer, Path(made))
    return made


@pytest.fixture
def both(folder):
    """The same models with 8-bit products besides."""
    quantise(Path(folder))
    return folder


def rows_of(lengths):
    draw = random.Random(0)
    return [[draw.randrange(5, 200) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "positions"),
    [
        ((1,), ([0],)),
        ((9,), ([4],)),
        ((64, 2, 17, 1), ([63, 0, 5, 5], [], [16], [0])),
        ((8, 8), ([], [7, 1])),
    ],
)
def test_logits_are_those_of_pytorch_at_any_lengths_and_slots(
    folder, lengths, positions, tokenizer
):
    model = BertForMaskedLM.from_pretrained(folder).eval()
    rows = rows_of(lengths)
    found = load_onnx(folder).logits(rows, positions)
    assert found.dtype == torch.float32
    assert found.shape == (sum(map(len, positions)), len(tokenizer))
    with torch.inference_mode():  # row by row, without fitb's forward pass and without padding
        alone = [model(torch.tensor([row])).logits[0] for row in rows]
    expected = torch.stack(
        [logits[place] for logits, places in zip(alone, positions, strict=True) for place in places]
    )
    assert expected.abs().max() > 1  # an error of 1e-4 would be seen
    assert (found - expected).abs().max() <= 1e-4


ACTIVATIONS = [{"hidden_act": name} for name in ("gelu", "gelu_new", "relu")]


@pytest.mark.parametrize("changes", [*ACTIVATIONS, {"tie_word_embeddings": False}])
def test_every_activation_and_a_decoder_of_its_own_are_written_as_pytorch_computes_them(
    make_folder, tokenizer, tmp_path, changes
):
    model = BertForMaskedLM.from_pretrained(make_folder(**changes)).eval()
    if "tie_word_embeddings" in changes:
        with torch.no_grad():
            model.cls.predictions.decoder.weight.neg_()
    assert export_onnx(model, tokenizer, tmp_path) <= 1e-4


def test_the_graph_is_valid_standard_onnx_that_holds_the_embedding_once(folder):
    graph = onnx.load(Path(folder) / FP32)
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}
    sizes = [tuple(weight.dims) for weight in graph.graph.initializer]
    model = BertForMaskedLM.from_pretrained(folder)
    words = tuple(model.bert.embeddings.word_embeddings.weight.shape)
    assert sizes.count(words) == 1 and words[::-1] not in sizes
    named = {value.name: value for value in graph.graph.input}
    assert sorted(named) == ["attention_mask", "input_ids", "slots"]


def test_a_file_with_other_inputs_is_refused_with_what_to_do(folder):
    """Files of before the last layer ran at the slots alone took row and position."""
    path = Path(folder) / FP32
    graph = onnx.load(path)
    (slots,) = (one for one in graph.graph.input if one.name == "slots")
    slots.name = "position"
    for node in graph.graph.node:
        node.input[:] = ["position" if name == "slots" else name for name in node.input]
    onnx.save(graph, path)
    with pytest.raises(DataError, match="attention_mask, input_ids, position; .* again"):
        load_onnx(folder)


def test_a_graph_that_says_something_else_is_refused(make_folder, tokenizer, tmp_path, monkeypatch):
    model = BertForMaskedLM.from_pretrained(make_folder()).eval()
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.cls.predictions.bias[7] += 0.25
    monkeypatch.setattr(ours, "graph_of", lambda _: graph_of(wrong))
    with pytest.raises(SystemFault, match=r" 0.25; .*--onnx"):
        export_onnx(model, tokenizer, tmp_path)


def test_eight_bits_touch_the_encoder_alone(both):
    plain, rounded = (onnx.load(Path(both) / name) for name in (FP32, INT8))
    products = [node for node in rounded.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == len(encoder_products(plain)) == 2 * 4 + 1
    assert all(node.name.startswith("bert.encoder.") for node in products)
    before = {weight.name: weight for weight in plain.graph.initializer}
    after = {weight.name: weight for weight in rounded.graph.initializer}
    multiplied = {
        node.input[1] for node in plain.graph.node if node.name in encoder_products(plain)
    }
    for name, weight in before.items():
        if name not in multiplied:
            kept = onnx.numpy_helper.to_array(after[name])
            assert np.array_equal(kept, onnx.numpy_helper.to_array(weight)), name
    eight = [weight for weight in after.values() if weight.data_type == onnx.TensorProto.INT8]
    assert {w.name.removesuffix("_quantized") for w in eight if w.dims and len(w.dims) == 2} == (
        multiplied
    )


def test_the_backend_that_is_asked_for_answers_and_eight_bits_within_a_tenth(both):
    """Weights have 7 bits, activations 8: products of 24 terms are off by about 1 %."""
    rows, positions = rows_of([40, 9, 1]), [[3, 39], [4], [0]]
    assert isinstance(load_scorer(both), TorchScorer)
    plain, rounded = (load_scorer(both, name, threads=1) for name in ("onnx", "onnx-int8"))
    assert isinstance(plain, OnnxScorer) and isinstance(rounded, OnnxScorer)
    assert plain.max_length == load_scorer(both).max_length
    before = plain.logits(rows, positions)
    assert 0 < (rounded.logits(rows, positions) - before).norm() <= 0.1 * before.norm()


def test_a_missing_file_is_named_with_the_flag_that_writes_it(make_folder):
    for file, flag in ((FP32, "--onnx"), (INT8, "--int8")):
        with pytest.raises(DataError, match=f"no {file}; .*`fitb export {flag}`"):
            load_onnx(make_folder(), file)


def test_a_damaged_file_is_refused_in_one_line(folder):
    path = Path(folder) / FP32
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"{FP32} cannot be opened") as caught:
        load_onnx(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_when_the_file_is_opened(folder, number):
    path = Path(folder) / FP32
    graph = onnx.load(path)
    weight = next(w for w in graph.graph.initializer if w.name == "places")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[-1, -1] = number
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, path)
    with pytest.raises(DataError, match=f"{FP32}: places not finite"):
        load_onnx(folder)


def test_a_logit_that_is_not_finite_is_an_error_and_no_answer(folder, tokenizer):
    model = BertForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():  # finite weights, whose products are not
        model.cls.predictions.transform.LayerNorm.weight.fill_(3e38)
    export = Path(folder) / "large"
    export.mkdir()
    onnx.save(graph_of(model), export / FP32)
    for scorer in (TorchScorer(model, tokenizer), OnnxScorer(export / FP32, tokenizer, 64)):
        with pytest.raises(DataError, match="not finite"):
            scorer.logits([[2, 4, 3]], [[1]])


def test_another_tokenizer_beside_the_file_is_refused(folder, tmp_path):
    train_tokenizer(["other words of another text altogether"] * 9, 90, tmp_path / "other")
    (Path(folder) / "tokenizer.json").write_bytes((tmp_path / "other/tokenizer.json").read_bytes())
    with pytest.raises(ContractError, match="has a vocabulary of"):
        load_onnx(folder)


def test_a_tokenizer_with_other_ids_is_refused_by_its_fingerprint(folder):
    path = Path(folder) / "tokenizer.json"
    other = json.loads(path.read_text())
    other["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(other))
    with pytest.raises(ContractError, match="export the model again"):
        load_onnx(folder)


def test_an_activation_without_operator_is_refused(make_folder, tokenizer, tmp_path):
    model = BertForMaskedLM.from_pretrained(make_folder(hidden_act="silu")).eval()
    with pytest.raises(ConfigError, match="hidden_act='silu'.*without --onnx"):
        export_onnx(model, tokenizer, tmp_path)


def test_without_the_extra_it_says_what_to_install(folder, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name)
    )
    for call in (
        lambda: load_onnx(folder),
        lambda: quantise(Path(folder)),
        lambda: export_onnx(BertModel.from_pretrained(folder), None, tmp_path),
    ):
        with pytest.raises(SystemFault, match=r"pip install 'fitb\[onnx\]'"):
            call()
