"""A model's vocabulary is that of the shards where its files show it, and nowhere else."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import BertTokenizerLegacy

from fitb.corpus.tokenizer import load_tokenizer
from fitb.model.load import load_model


@pytest.fixture
def words(tokenizer_folder):
    return (tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def put(make_folder):
    """A model whose folder holds these files of a tokenizer and no others."""

    def make(name, files):
        folder = Path(make_folder(name, with_tokenizer=False))
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / file).write_text(text, encoding="utf-8")
        return str(folder)

    return make


@pytest.fixture
def judged(put, make_folder, tokenizer, failures):
    """What the contract says of these files beside a model in a role, the other one being fine."""

    def judged(files, role="teacher"):
        folder = files if isinstance(files, str) else put("judged", files)
        models = {one: make_folder("fine") for one in ("student", "teacher")} | {role: folder}
        found = failures(**{r: load_model(m, tokenizer=tokenizer) for r, m in models.items()})
        assert all(role in failure for failure in found)
        return " ".join(found)

    return judged


@pytest.fixture
def content(tokenizer_folder):
    """The tokenizer of the shards, to be changed."""
    return json.loads((tokenizer_folder / "tokenizer.json").read_text())


def lines(words):
    return "".join(f"{word}\n" for word in words)


LOWER, PYTHON = {"do_lower_case": True}, {"tokenizer_class": "BertTokenizerLegacy"}


@pytest.mark.parametrize("settings", [None, LOWER, PYTHON], ids=["none", "lower", "python"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_vocabulary_of_equal_size_in_another_order_is_refused(judged, words, role, settings):
    rest = {} if settings is None else {"tokenizer_config.json": settings}
    assert judged({"vocab.txt": lines(words), **rest}, role) == ""
    said = judged({"vocab.txt": lines([*words[:5], *words[:4:-1]]), **rest}, role)
    assert "would give other ids" in said
    assert repr(words[5]) in said and str(len(words) - 1) in said


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_no_tokenizer_at_all_is_no_evidence_and_the_remedy_is_one(judged, content, role):
    said = judged({}, role)
    assert "it is unknown whether" in said and "copy the tokenizer" in said
    assert judged({"tokenizer.json": content}, role) == ""


def test_a_tokenizer_that_cannot_be_read_is_no_evidence(judged):
    said = judged({"vocab.txt": "[PAD]\n", "tokenizer_config.json": "{"})
    assert "it is unknown whether" in said


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt"])
def test_tokens_of_added_tokens_json_belong_to_the_vocabulary(
    judged, words, tokenizer_folder, form
):
    """The files of the vocabulary alone are equal to those of the shards."""
    files = {form: (tokenizer_folder / form).read_text(), "added_tokens.json": {"zz": len(words)}}
    assert f"'zz' is {len(words)} there, none in the shards" in judged(files)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("normalizer", {"lowercase": False}),
        ("normalizer", {"handle_chinese_chars": False}),
        ("model", {"max_input_chars_per_word": 7}),
        ("model", {"continuing_subword_prefix": "@@"}),
        ("pre_tokenizer", {"type": "Whitespace"}),
    ],
)
def test_equal_pieces_under_other_rules_are_refused_with_the_rule(judged, content, part, change):
    content[part] |= change
    said = judged({"tokenizer.json": content})
    assert f"its {part} is" in said and "would give other ids" in said


def test_equal_rules_in_another_way_of_writing_are_taken(judged, put, content, tokenizer, manifest):
    content["normalizer"]["strip_accents"] = True  # what null means to one that lowercases
    content["normalizer"] = {"type": "Sequence", "normalizers": [content["normalizer"]]}
    content["post_processor"] = content["decoder"] = None
    for entry in content["added_tokens"]:
        entry["rstrip"] = True  # of special tokens, which no text holds
    folder = put("x", {"tokenizer.json": content})
    loaded = load_model(folder, tokenizer=tokenizer)
    assert loaded.tokenizer_fingerprint != manifest["tokenizer"]["fingerprint"]
    assert judged(folder) == ""


def test_a_word_that_only_one_of_them_finds_whole_is_a_difference(judged, content):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    number = content["model"]["vocab"]["the"]
    content["added_tokens"].append({"id": number, "content": "the", **flags, "special": False})
    assert "its added_tokens is" in judged({"tokenizer.json": content})


@pytest.mark.parametrize("lower", [True, False])
def test_a_tokenizer_in_python_is_compared_by_what_it_reads(judged, put, words, lower):
    files = {"vocab.txt": lines(words), "tokenizer_config.json": PYTHON | {"do_lower_case": lower}}
    folder = put("x", files)
    assert isinstance(load_tokenizer(folder), BertTokenizerLegacy)
    assert ("into other subwords" in judged(folder)) is not lower


def test_another_tokenizer_beside_the_shards_than_their_manifest_says_is_refused(
    make_folder, tokenizer_folder, content, failures, tmp_path
):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "beside")
    vocabulary = content["model"]["vocab"]
    vocabulary["the"], vocabulary["a"] = vocabulary["a"], vocabulary["the"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "vocab.txt").unlink()
    tokenizer = load_tokenizer(folder)
    model = make_folder()
    tokenizer.save_pretrained(model)
    (failure,) = failures(load_model(model, tokenizer=tokenizer), tokenizer=tokenizer)
    assert "tokenizer beside the shards" in failure and "fingerprint" in failure
