import dataclasses
from functools import partial

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertModel, PreTrainedTokenizerFast

from fitb.base.errors import ContractError
from fitb.config import Geometry
from fitb.model.contract import check_contract
from fitb.model.load import load_model

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def make(make_folder, tokenizer):
    def load(name="model", **changes):
        return load_model(make_folder(name, **changes), tokenizer=tokenizer)

    return load


def failures(**arguments):
    with pytest.raises(ContractError) as caught:
        check_contract(**arguments)
    return caught.value.failures


def wrap(raw):
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=raw, **dict(zip(names, SPECIAL, strict=True)))


def test_what_fits_together_passes(make, tokenizer, manifest):
    """A trained pair of which every position is used; a random student alone; no shards."""
    check_contract(
        tokenizer=tokenizer,
        manifest=manifest | {"length": 64},
        student=make("student"),
        teacher=make("teacher", num_hidden_layers=4),
        needs_teacher_head=True,
        needs_student_head=True,
        attention=True,
        layer_map="uniform",
    )
    small = Geometry(num_hidden_layers=1, hidden_size=12, intermediate_size=8)
    random = load_model(small, tokenizer=tokenizer, length=32)
    for student, shards in ((random, manifest), (make(), None)):
        check_contract(
            tokenizer=tokenizer, manifest=shards, student=student, needs_student_head=True
        )


def test_all_failures_come_at_once_each_with_a_remedy(make, tokenizer, manifest):
    teacher = make("teacher", kind=BertModel, num_attention_heads=4, num_hidden_layers=1)
    models = {"student": make("student"), "teacher": teacher}
    found = failures(
        tokenizer=tokenizer,
        manifest=manifest | {"length": 65},
        **models,
        needs_teacher_head=True,
        attention=True,
        layer_map="uniform",
    )
    assert len(found) == 5
    assert all("; " in failure for failure in found)
    text = "\n".join(found)
    for said in (
        "64 positions, rows have 65 tokens; prepare shards of length 64 or less",
        "student has 3 attention heads, the teacher 4",
        "lacks a trained MLM head",
        "1 < 2 layers",
    ):
        assert said in text
    check_contract(tokenizer=tokenizer, manifest=manifest, **models)  # attention is not compared


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_head_that_would_be_random_is_named_where_it_is_needed(make, tokenizer, manifest, role):
    models = {"student": make("student"), "teacher": make("teacher")}
    models[role] = make("headless", kind=BertModel)
    needed = {f"needs_{role}_head": True}
    (failure,) = failures(tokenizer=tokenizer, manifest=manifest, **models, **needed)
    called = {"student": "model", "teacher": "teacher"}[role]  # nothing trains one that is asked
    assert f"the {called} (" in failure and ("term" in failure) == (role == "teacher")
    assert "cls.predictions.transform.dense.weight" in failure
    check_contract(tokenizer=tokenizer, manifest=manifest, **models)


def test_an_encoder_with_random_layers_is_refused_even_without_head(make, tokenizer, manifest):
    whole = make()
    torn = dataclasses.replace(
        whole, missing=tuple(f"bert.encoder.layer.1.weight{i}" for i in range(10))
    )
    (failure,) = failures(tokenizer=tokenizer, manifest=manifest, student=torn)
    assert "lacks 10 weights of its encoder" in failure
    assert "and 2 more" in failure


def test_vocabularies_of_other_sizes_are_refused(make, tokenizer, manifest):
    student = make()
    tokenizer.add_tokens(["unheardof"])
    found = failures(tokenizer=tokenizer, manifest=manifest, student=student)
    size = len(tokenizer)
    assert any(f"vocabulary of {size - 1}, the tokenizer one of {size}" in f for f in found)
    assert any(f"{size} entries, the manifest says {size - 1}" in f for f in found)


def test_other_special_ids_are_refused(make, tokenizer, manifest):
    student = make(pad_token_id=3)
    special_ids = manifest["tokenizer"]["special_ids"] | {"mask": 9}
    other = manifest | {"tokenizer": manifest["tokenizer"] | {"special_ids": special_ids}}
    found = failures(tokenizer=tokenizer, manifest=other, student=student)
    assert len(found) == 2
    assert any("pads with id 3, the tokenizer with 0" in failure for failure in found)
    assert any("mask id 4, the manifest says 9" in failure for failure in found)


BERTS = pre_tokenizers.BertPreTokenizer()
ASCII = [chr(code) for code in range(33, 127)]


def tokenizer_of(model, pieces, pre_tokenizer=BERTS, normalizer=None):
    words = {w: i for i, w in enumerate([*SPECIAL, *pieces])}
    raw = Tokenizer(model(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizer
    if normalizer:
        raw.normalizer = normalizer
    return wrap(raw)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ((models.WordPiece, "e ##e", BERTS, normalizers.BertNormalizer(lowercase=False)), None),
        ((models.WordPiece, "e ##e", BERTS, normalizers.Replace(",", ",,")), "gives other ids"),
        ((models.WordPiece, "", pre_tokenizers.Split("o", "removed")), "has no token"),
        ((models.WordLevel, "\u2581ok", pre_tokenizers.Metaspace()), "'\u2581ok' stands for 'ok'"),
        ((partial(models.BPE, merges=[]), " ".join(ASCII)), "its offset does not"),
    ],
    ids=["cased", "doubled commas", "vanishing text", "marked spaces", "no word starts"],
)
def test_a_tokenizer_that_does_not_give_back_a_text_is_refused(make, raw, said):
    kind, pieces, *rest = raw
    fast = tokenizer_of(kind, pieces.split(), *rest)
    found = failures(tokenizer=fast, manifest=None, student=make())
    told = [failure for failure in found if "does not reproduce" in failure]
    assert bool(told) == bool(said) and (not said or any(said in failure for failure in told))


def test_use_of_the_tokenizer_leaves_no_trace_in_the_contract(make, tokenizer, manifest):
    tokenizer(["the dog", "the"], padding=True, truncation=True, max_length=4)
    check_contract(tokenizer=tokenizer, manifest=manifest, student=make())
