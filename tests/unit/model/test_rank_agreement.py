"""What ranks have loaded is compared: equal things have equal digests, and others are named."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertForMaskedLM

from fitb.base.world import World
from fitb.corpus.tokenizer import load_tokenizer
from fitb.model.rank_agreement import differences, digest_of_model, digest_of_tokenizer, load_alike


@pytest.fixture
def model(make_folder):
    return BertForMaskedLM.from_pretrained(make_folder())


def test_one_flipped_bit_another_type_or_another_setting_is_another_model(model):
    model.bert.embeddings.register_buffer("scalar", torch.tensor(1.5, dtype=torch.bfloat16))
    before = digest_of_model(model, model.config)
    assert digest_of_model(model, model.config) == before
    for _, tensor in (*model.named_parameters(), *model.named_buffers()):
        last = tensor.detach().reshape(-1).view(torch.uint8)[-1:]
        last ^= 1
        assert digest_of_model(model, model.config) != before
        last ^= 1
    assert digest_of_model(model, model.config) == before
    assert digest_of_model(model.double(), model.config) != before
    model.float()
    model.config.layer_norm_eps *= 2
    assert digest_of_model(model, model.config) != before


def test_another_piece_or_special_token_is_another_tokenizer(tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder)
    before = digest_of_tokenizer(tokenizer)
    assert digest_of_tokenizer(load_tokenizer(tokenizer_folder)) == before
    tokenizer.add_tokens(["xyzzy"])
    assert digest_of_tokenizer(tokenizer) != before
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"sep_token": "[CLS]"}))
    assert digest_of_tokenizer(load_tokenizer(tmp_path)) != digest_of_tokenizer(tokenizer)


SAME = {"teacher": "a" * 64, "tokenizer": "b" * 64}


@pytest.mark.parametrize(
    ("second", "named"),
    [
        (
            {**SAME, "teacher": "c" * 64},
            ["rank 1 on h2", "rank 0 on h1", "teacher", "cccc", "aaaa"],
        ),
        ({"tokenizer": SAME["tokenizer"]}, ["rank 1 on h2", "teacher", "none"]),
        ({**SAME, "student": "d" * 64}, ["rank 1 on h2", "student", "none"]),
        ("DataError: torn", ["rank 1 on h2", "DataError: torn"]),
    ],
)
def test_what_differs_is_named_with_rank_and_host(second, named):
    assert differences([("h1", SAME), ("h3", dict(SAME))]) == []
    (said,) = differences([("h1", SAME), ("h2", second), ("h3", dict(SAME))])
    assert all(word in said for word in named)
    assert "tokenizer" not in said


def test_a_first_rank_that_could_not_load_is_named_and_the_others_are_compared():
    said = differences([("h1", "DataError: torn"), ("h2", SAME), ("h3", {**SAME, "x": "e" * 64})])
    assert [line.split(" on ")[0] for line in said] == ["rank 0", "rank 2"]


def test_a_process_alone_loads_and_compares_nothing():
    def fail(_):
        raise AssertionError

    assert load_alike(lambda: 7, fail, World()) == 7
