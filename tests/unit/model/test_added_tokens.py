"""A model that gets rows for added tokens keeps all that it had, bit by bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM

from fitb.base.errors import ContractError
from fitb.config import Geometry
from fitb.corpus.tokenizer import add_tokens, describe_tokenizer, load_tokenizer
from fitb.model.added_tokens import extend_embeddings, extended
from fitb.model.contract import check_contract
from fitb.model.load import load_model

TOKENS = ["TensorFlow", "covid", "state-of-the-art"]


@pytest.fixture
def added_folder(tokenizer_folder, tmp_path):
    """A tokenizer folder with three added tokens."""
    folder = tmp_path / "added_tokenizer"
    shutil.copytree(tokenizer_folder, folder)
    add_tokens(folder, TOKENS)
    return folder


@pytest.fixture
def entry(added_folder):
    return describe_tokenizer(added_folder)


def with_random_biases(folder):
    """Save a model again with biases that are not zero."""
    model = BertForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        model.cls.predictions.bias.normal_(generator=torch.Generator().manual_seed(3))
    model.save_pretrained(folder)
    return folder


def resized(folder, size):
    """Save a model again with another number of rows."""
    model = BertForMaskedLM.from_pretrained(folder)
    model.resize_token_embeddings(size, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def check(loaded, tokenizer, entry):
    manifest = {"length": 32, "tokenizer": entry}
    check_contract(tokenizer=tokenizer, manifest=manifest, student=loaded)


def test_old_rows_stay_and_new_ones_are_the_mean_of_their_pieces(make_folder, tokenizer, entry):
    folder = with_random_biases(make_folder())
    model = load_model(folder, tokenizer=tokenizer).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = model.config.vocab_size
    state = torch.random.get_rng_state()
    extend_embeddings(model, entry["added"])
    assert torch.equal(torch.random.get_rng_state(), state)
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, old in before.items():
        assert torch.equal(after[name][: len(old)] if old.ndim else after[name], old), name
        assert after[name].dtype == old.dtype
    grown = [name for name, old in before.items() if after[name].shape != old.shape]
    assert sorted(grown) == [
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.bias",
        "cls.predictions.decoder.bias",
        "cls.predictions.decoder.weight",
    ]
    for name in grown:
        assert len(after[name]) == size + 3
        for token in entry["added"]:
            pieces = torch.stack([before[name][piece] for piece in token["pieces"]]).double()
            torch.testing.assert_close(
                after[name][token["id"]].double(), pieces.mean(0), rtol=1e-6, atol=1e-7
            )


def test_the_decoder_stays_tied_and_one_parameter(make_folder, tokenizer, entry):
    model = load_model(make_folder(), tokenizer=tokenizer).model
    names = [name for name, _ in model.named_parameters()]
    extend_embeddings(model, entry["added"])
    predictions = model.cls.predictions
    assert predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert predictions.decoder.bias is predictions.bias
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    size = model.config.vocab_size
    assert (size, predictions.decoder.out_features) == (len(tokenizer) + 3,) * 2
    assert model(torch.tensor([[2, size - 1, 3]])).logits.shape == (1, 3, size)


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
def test_a_model_that_lacks_exactly_the_added_tokens_then_fits_the_contract(
    make_folder, tokenizer_folder, added_folder, entry, form
):
    new = load_tokenizer(added_folder)
    folder = make_folder(with_tokenizer=form == "tokenizer.json")
    shutil.copy(tokenizer_folder / form, folder)
    loaded = load_model(folder, tokenizer=new)
    with pytest.raises(ContractError, match="has a vocabulary of"):
        check(loaded, new, entry)
    check(extended(loaded, entry), new, entry)


@pytest.mark.parametrize("change", ["swapped", "none"])
def test_rows_for_added_tokens_are_no_evidence_for_the_vocabulary_below_them(
    make_folder, tokenizer_folder, added_folder, entry, change
):
    """A vocabulary in another order, or none at all, is refused though the sizes then fit."""
    new = load_tokenizer(added_folder)
    folder = make_folder(with_tokenizer=False)
    if change == "swapped":
        pieces = (tokenizer_folder / "vocab.txt").read_text().splitlines()
        pieces[5:] = pieces[:4:-1]
        Path(folder, "vocab.txt").write_text("\n".join(pieces) + "\n")
    loaded = extended(load_model(folder, tokenizer=new), entry)
    assert loaded.model.config.vocab_size == len(new)
    with pytest.raises(ContractError) as caught:
        check(loaded, new, entry)
    (failure,) = caught.value.failures
    assert ("would give other ids" if change == "swapped" else "copy the tokenizer") in failure


def test_a_geometry_has_the_whole_vocabulary_from_the_start(added_folder, entry):
    small = Geometry(
        num_hidden_layers=1, hidden_size=24, intermediate_size=32, num_attention_heads=3
    )
    loaded = load_model(small, tokenizer=load_tokenizer(added_folder), length=32)
    assert extended(loaded, entry) is loaded
    check(loaded, load_tokenizer(added_folder), entry)


def test_shards_without_added_tokens_leave_every_model_alone(
    make_folder, tokenizer, tokenizer_folder
):
    loaded = load_model(resized(make_folder(), len(tokenizer) - 3), tokenizer=tokenizer)
    assert extended(loaded, describe_tokenizer(tokenizer_folder)) is loaded


def test_a_model_of_another_vocabulary_is_left_to_the_contract(
    make_folder, tokenizer, added_folder, entry
):
    """Of another size, of another tokenizer, or with only some of the added tokens."""
    new = load_tokenizer(added_folder)
    size = len(tokenizer)
    others = [
        resized(make_folder("smaller"), size - 1),
        resized(make_folder("some"), size + 1),
        make_folder("other"),
    ]
    path = Path(others[2]) / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["the"], vocabulary["a"] = vocabulary["a"], vocabulary["the"]
    path.write_text(json.dumps(content))
    for folder, words in zip(
        others,
        (f"vocabulary of {size - 1}", f"vocabulary of {size + 1}", "would give other ids"),
        strict=True,
    ):
        loaded = load_model(folder, tokenizer=new)
        assert extended(loaded, entry) is loaded
        with pytest.raises(ContractError, match=words):
            check(loaded, new, entry)
