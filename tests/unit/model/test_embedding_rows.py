"""A model that gets rows for added tokens keeps all that it had, bit by bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM

from fitb.config import Geometry
from fitb.corpus.tokenizer import add_tokens, describe_tokenizer, load_tokenizer
from fitb.model.added_tokens import extend_embeddings, extended
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


@pytest.fixture
def new(added_folder):
    return load_tokenizer(added_folder)


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


@pytest.fixture
def refused(failures, new, entry):
    """What the contract says of a model beside shards with the added tokens; empty if it fits."""
    manifest = {"length": 32, "tokenizer": entry}
    return lambda loaded: " ".join(failures(loaded, tokenizer=new, manifest=manifest))


def test_old_rows_stay_new_ones_are_the_mean_of_their_pieces_and_both_stay_tied(
    make_folder, tokenizer, entry
):
    model = load_model(with_random_biases(make_folder()), tokenizer=tokenizer).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = model.config.vocab_size
    state = torch.random.get_rng_state()
    names = [name for name, _ in model.named_parameters()]
    extend_embeddings(model, entry["added"])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training and model.config.vocab_size == size + 3
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
            mean = before[name][token["pieces"]].double().mean(0)
            torch.testing.assert_close(
                after[name][token["id"]].double(), mean, rtol=1e-6, atol=1e-7
            )
    predictions = model.cls.predictions
    assert predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert predictions.decoder.bias is predictions.bias
    assert model(torch.tensor([[2, size + 2, 3]])).logits.shape == (1, 3, size + 3)


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
def test_a_model_that_lacks_exactly_the_added_tokens_then_fits_the_contract(
    make_folder, new, tokenizer_folder, entry, refused, form
):
    folder = make_folder(with_tokenizer=form == "tokenizer.json")
    shutil.copy(tokenizer_folder / form, folder)
    loaded = load_model(folder, tokenizer=new)
    assert "has a vocabulary of" in refused(loaded)
    assert not refused(extended(loaded, entry))


@pytest.mark.parametrize(
    ("size", "form", "said"),
    [
        (-1, "tokenizer.json", "vocabulary of"),
        (1, "tokenizer.json", "vocabulary of"),
        (0, "tokenizer.json", "would give other ids"),
        (0, "vocab.txt", "would give other ids"),
        (0, None, "copy the tokenizer"),
    ],
    ids=["smaller", "with some", "swapped", "swapped vocab.txt", "without a tokenizer"],
)
def test_a_model_of_another_vocabulary_is_refused_though_its_sizes_may_then_fit(
    make_folder, tokenizer, new, tokenizer_folder, entry, refused, size, form, said
):
    """It has rows for other tokens; only one whose tokenizer.json says so is not extended."""
    folder = Path(make_folder(with_tokenizer=form == "tokenizer.json"))
    if size:
        resized(folder, len(tokenizer) + size)
        said = f"{said} {len(tokenizer) + size}"
    elif form == "vocab.txt":
        pieces = (tokenizer_folder / form).read_text().splitlines()
        (folder / form).write_text("\n".join([*pieces[:5], *pieces[:4:-1]]) + "\n")
    elif form:
        content = json.loads((folder / form).read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["the"], vocabulary["a"] = vocabulary["a"], vocabulary["the"]
        (folder / form).write_text(json.dumps(content))
    loaded = load_model(str(folder), tokenizer=new)
    then = extended(loaded, entry)
    assert (then is loaded) is (form == "tokenizer.json")
    assert said in refused(then)


def test_a_geometry_has_the_whole_vocabulary_from_the_start(new, entry, refused):
    loaded = load_model(Geometry(1, 24, 32, 3), tokenizer=new, length=32)
    assert extended(loaded, entry) is loaded
    assert not refused(loaded)


def test_shards_without_added_tokens_leave_every_model_alone(
    make_folder, tokenizer, tokenizer_folder
):
    loaded = load_model(resized(make_folder(), len(tokenizer) - 3), tokenizer=tokenizer)
    assert extended(loaded, describe_tokenizer(tokenizer_folder)) is loaded
