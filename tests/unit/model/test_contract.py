import dataclasses
from functools import partial

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertModel, PreTrainedTokenizerFast

from fitb.config import Geometry
from fitb.model.load import load_model

MAPS = {"objective.layer_map": "uniform", "model.init_layers": "lower"}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def make(make_folder, tokenizer):
    def load(name="model", **changes):
        return load_model(make_folder(name, **changes), tokenizer=tokenizer)

    return load


def wrap(raw):
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=raw, **dict(zip(names, SPECIAL, strict=True)))


def test_what_fits_together_passes(make, failures, tokenizer, manifest):
    """A trained pair of which every position is used; a random student alone; no shards."""
    every = dict.fromkeys(("needs_teacher_head", "needs_student_head", "attention"), True)
    pair = {"student": make("student"), "teacher": make("teacher", num_hidden_layers=4)}
    assert not failures(**pair, manifest=manifest | {"length": 64}, layer_maps=MAPS, **every)
    small = Geometry(num_hidden_layers=1, hidden_size=12, intermediate_size=8)
    random = load_model(small, tokenizer=tokenizer, length=32)
    assert not failures(random, needs_student_head=True)
    assert not failures(make(), manifest=None, needs_student_head=True)


def test_all_failures_come_at_once_each_with_a_remedy(make, failures, manifest):
    teacher = make("teacher", kind=BertModel, num_attention_heads=4, num_hidden_layers=1)
    models = {"student": make("student"), "teacher": teacher}
    needs = {"needs_teacher_head": True, "attention": True, "layer_maps": MAPS}
    found = failures(manifest=manifest | {"length": 65}, **models, **needs)
    assert len(found) == 6
    assert all("; " in failure for failure in found)
    for said in (
        "64 positions, rows have 65 tokens; prepare shards of length 64 or less",
        "student has 3 attention heads, the teacher 4",
        "lacks a trained MLM head",
        "1 < 2 layers",
    ):
        assert said in "\n".join(found)
    assert not failures(**models)  # attention is not compared


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_head_that_would_be_random_is_named_where_it_is_needed(make, failures, role):
    models = {"student": make("student"), "teacher": make("teacher")}
    models[role] = make("headless", kind=BertModel)
    (failure,) = failures(**models, **{f"needs_{role}_head": True})
    called = {"student": "model", "teacher": "teacher"}[role]  # nothing trains one that is asked
    assert f"the {called} (" in failure and ("term" in failure) == (role == "teacher")
    assert "cls.predictions.transform.dense.weight" in failure
    assert not failures(**models)


def test_relation_heads_divide_both_hidden_sizes(make, failures):
    pair = {"student": make("student", hidden_size=12, num_attention_heads=2)}
    pair["teacher"] = make("teacher", hidden_size=16, num_attention_heads=4)
    assert not failures(**pair, relation_heads=4)
    (failure,) = failures(**pair, relation_heads=3)
    assert all(word in failure for word in ("12", "16", "3", "divisor of 4"))


def test_an_encoder_with_random_layers_is_refused_even_without_head(make, failures):
    missing = tuple(f"bert.encoder.layer.1.weight{i}" for i in range(10))
    (failure,) = failures(dataclasses.replace(make(), missing=missing))
    assert "lacks 10 weights of its encoder" in failure
    assert "and 2 more" in failure


def test_vocabularies_of_other_sizes_are_refused(make, failures, tokenizer):
    student, size = make(), len(tokenizer)
    tokenizer.add_tokens(["unheardof"])
    found = failures(student)
    assert any(f"vocabulary of {size}, the tokenizer one of {size + 1}" in f for f in found)
    assert any(f"{size + 1} entries, the manifest says {size}" in f for f in found)


def test_other_special_ids_are_refused(make, failures, manifest):
    manifest["tokenizer"]["special_ids"]["mask"] = 9
    found = failures(make(pad_token_id=3))
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
def test_a_tokenizer_that_does_not_give_back_a_text_is_refused(make, failures, raw, said):
    kind, pieces, *rest = raw
    fast = tokenizer_of(kind, pieces.split(), *rest)
    found = failures(make(), tokenizer=fast, manifest=None)
    told = [failure for failure in found if "does not reproduce" in failure]
    assert bool(told) == bool(said) and (not said or any(said in failure for failure in told))


def test_use_of_the_tokenizer_leaves_no_trace_in_the_contract(make, failures, tokenizer):
    tokenizer(["the dog", "the"], padding=True, truncation=True, max_length=4)
    assert not failures(make())
