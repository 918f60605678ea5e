"""Checkpoints as they are published, with what their makers left out or put in."""

import json

import numpy as np
import pytest
import torch
from model_folders import edit_weights
from transformers import BertConfig, BertForMaskedLM

from fitb.base.errors import DataError
from fitb.corpus.tokenizer import load_tokenizer
from fitb.infer.fill import fill
from fitb.infer.onnx import export_onnx
from fitb.infer.request import FillRequest, Search
from fitb.infer.scorer import load_scorer
from fitb.model.configuration import read_config
from fitb.model.load import load_model
from fitb.model.saved import _fill
from tests.unit.conftest import tiny_config
from tests.unit.infer.conftest import tiny_tokenizer

PIECES = [*"abcdefgh", "##x"]


def bert(size, **changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "initializer_range": 0.3}
    return BertForMaskedLM(tiny_config(size, **sizes, **changes)).eval()


@pytest.fixture
def folder(tmp_path):
    tiny_tokenizer(*PIECES).save_pretrained(tmp_path)
    return tmp_path


def assert_read(folder, model):
    """The folder is read as this model, of the tokens that its tokenizer has."""
    scorer = load_scorer(str(folder))
    row = [2, 5, 4, 7, 3]
    with torch.inference_mode():
        plain = model(torch.tensor([row])).logits[0, 2, : 5 + len(PIECES)]
    np.testing.assert_allclose(scorer.logits([row], [[2]])[0], plain, atol=1e-5)
    return scorer


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_pad_a_vocabulary_are_left_out(folder, form, tied):
    """The remedy was to use the model's own tokenizer, and it was its own."""
    model = bert(24, tie_word_embeddings=tied)
    if not tied:
        torch.nn.init.normal_(model.cls.predictions.decoder.weight)
        torch.nn.init.normal_(model.cls.predictions.decoder.bias)
    model.save_pretrained(folder)
    if form == "vocab.txt":
        words = sorted((tokens := load_tokenizer(folder).get_vocab()), key=tokens.__getitem__)
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (folder / name).unlink(missing_ok=True)
    scorer = assert_read(folder, model)
    (filled,) = fill(scorer, [FillRequest("a [MASK] c", Search(top_k=24))])
    assert len(filled.fillings) <= 5 + len(PIECES)


def test_a_larger_vocabulary_of_another_tokenizer_is_not_cut(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    tiny_tokenizer(*reversed(PIECES)).save_pretrained(other)
    bert(24).save_pretrained(folder)
    loaded = load_model(str(folder), tokenizer=load_tokenizer(other))
    assert loaded.model.config.vocab_size == 24


def test_tinyberts_own_folder_is_read(tmp_path):
    """config.json without model_type, vocab.txt alone, pytorch_model.bin, weights of fit_dense."""
    model = bert(5 + len(PIECES))
    config = model.config.to_dict()
    theirs = {"cell": {}, "emb_size": 32, "structure": [], "pre_trained": "", "training": ""}
    kept = {key: config[key] for key in config if key in BertConfig().to_dict() and config[key]}
    del kept["model_type"]
    (tmp_path / "config.json").write_text(json.dumps({**kept, **theirs}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    weights = {**model.state_dict(), "fit_dense.weight": torch.ones(768, 32)}
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert_read(tmp_path, model)


def test_a_folder_without_model_type_whose_weights_are_no_berts_says_what_to_add(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "gelu"}))
    torch.save({"roberta.embeddings.x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match='add "model_type": "bert"'):
        read_config(str(tmp_path))


def test_a_decoder_of_its_own_is_exported_with_its_own_bias(folder):
    model = bert(5 + len(PIECES), tie_word_embeddings=False)
    torch.nn.init.normal_(model.cls.predictions.decoder.bias)
    assert export_onnx(model, load_tokenizer(folder), folder) < 1e-4


@pytest.mark.parametrize("gone", ["cls.predictions.decoder.bias", "cls.predictions.bias"])
def test_the_bias_of_a_decoder_of_its_own_is_found_under_either_name(folder, gone):
    model = bert(5 + len(PIECES), tie_word_embeddings=False)
    with torch.no_grad():
        model.cls.predictions.decoder.bias.normal_()
        model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)
    model.save_pretrained(folder)
    edit_weights(folder, lambda _: {n: w for n, w in model.state_dict().items() if n != gone})
    assert load_model(str(folder), tokenizer=load_tokenizer(folder)).missing == ()
    assert_read(folder, model)


def test_a_checkpoint_of_a_student_with_a_decoder_of_its_own_is_read(tmp_path):
    """It trained and was exported, and its checkpoint could not be read again."""
    model = bert(5 + len(PIECES), tie_word_embeddings=False)
    names = set(dict(model.named_parameters()))
    assert {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"} <= names
    weights = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    _fill(model, weights, tmp_path)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    del weights["cls.predictions.decoder.weight"]
    with pytest.raises(DataError, match="decoder.weight"):
        _fill(model, weights, tmp_path)
