"""What a folder leaves open about its vocabulary is not filled in by a default."""

import json
import logging
import re

import pytest

from fitb.base.errors import DataError
from fitb.corpus.tokenizer import load_tokenizer, take_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{i}]" for i in range(9))]
CASED = ["the", "capital", "of", "is", ".", "Paris", "M\u00fcller", "##E", "a", "##a", "P"]
LOWER = [word.lower() for word in CASED if word != "M\u00fcller"]
UMLAUTS = [*LOWER, "m\u00fcller", "gr\u00fcn"]
HAN = [*LOWER, "\u6771", "\u4eac", "\u6771\u4eac"]


@pytest.fixture
def put(tmp_path):
    """A folder with vocab.txt, a config.json that says BERT, and settings if there are some."""

    def make(words, settings=None):
        folder = tmp_path / f"folder{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        text = "".join(f"{word}\n" for word in [*SPECIAL, *words])
        (folder / "vocab.txt").write_text(text, encoding="utf-8")
        (folder / "config.json").write_text('{"model_type": "bert"}')
        if settings is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return make


@pytest.mark.parametrize(
    ("words", "settings", "key", "pieces", "text", "read"),
    [
        (CASED, None, "do_lower_case", ["Paris", "E"], "the Paris", ["the", "Paris"]),
        (CASED, {"strip_accents": None}, "do_lower_case", ["M\u00fcller", "E"], "P", ["P"]),
        (UMLAUTS, None, "strip_accents", ["m\u00fcller", "gr\u00fcn"], "Gr\u00fcn", ["gr\u00fcn"]),
        (UMLAUTS, {"do_lower_case": True}, "strip_accents", ["gr\u00fcn"], "gr\u00fcn", None),
        (HAN, None, "tokenize_chinese_chars", ["\u6771\u4eac"], "\u6771\u4eac", ["\u6771\u4eac"]),
    ],
    ids=["cased", "cased-null", "umlauts", "umlauts-lower", "han"],
)
def test_a_setting_that_the_vocabulary_speaks_against_must_be_said(
    put, words, settings, key, pieces, text, read
):
    folder = put(words, settings)
    with pytest.raises(DataError) as caught:
        load_tokenizer(folder)
    said = str(caught.value)
    assert key in said and all(repr(piece) in said for piece in pieces)
    remedy = re.search(r'add (\{"\w+": false\})', said)[1]
    settings = json.loads(remedy) | {k: v for k, v in (settings or {}).items() if v is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(folder).tokenize(text) == (read or [text])


def test_a_setting_that_is_said_is_taken_at_its_word(put):
    tokenizer = load_tokenizer(put(CASED, {"do_lower_case": True, "strip_accents": True}))
    assert tokenizer.tokenize("The") == ["the"]


@pytest.mark.parametrize("words", [LOWER, [*LOWER, "##\u6771", "\u6771"]], ids=["latin", "han"])
def test_a_vocabulary_that_its_rules_can_write_needs_no_settings(put, words):
    """[unused] and special tokens, and single Han characters, speak against nothing."""
    assert load_tokenizer(put(words)).tokenize("The P") == ["the", "p"]


def test_a_few_pieces_among_many_speak_against_nothing(put):
    many = [f"word{number}" for number in range(1000)]
    assert load_tokenizer(put([*many, *(f"W{number}" for number in range(9))]))
    with pytest.raises(DataError, match="11 of the 1011 subwords"):
        load_tokenizer(put([*many, *(f"W{number}" for number in range(11))]))


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "RobertaTokenizer"}])
def test_a_class_that_finds_no_vocabulary_is_refused_and_not_given_five_tokens(put, settings):
    folder = put(LOWER, settings)
    if settings is None:
        (folder / "vocab.txt").unlink()
    with pytest.raises(DataError, match="no words"):
        load_tokenizer(folder)


def test_two_vocabularies_in_one_folder_are_refused(put):
    folder = put(LOWER)
    load_tokenizer(folder).save_pretrained(folder)
    assert load_tokenizer(folder)
    (folder / "vocab.txt").write_text("".join(f"{w}\n" for w in [*SPECIAL, *LOWER[::-1]]))
    with pytest.raises(DataError, match="has two vocabularies: 10 subwords of vocab.txt"):
        load_tokenizer(folder)
    (folder / "vocab.txt").unlink()
    assert load_tokenizer(folder).tokenize("the") == ["the"]


def test_code_of_a_tokenizer_is_named_and_not_offered(put, caplog):
    settings = {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["evil.X", None]}}
    folder = put(LOWER, settings)
    with caplog.at_level(logging.INFO), pytest.raises(DataError) as caught:
        load_tokenizer(folder)
    assert "auto_map" in str(caught.value) and "never run" in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)


def test_tokens_of_added_tokens_json_are_prepared_with(put, tmp_path):
    folder = put(LOWER)
    load_tokenizer(folder).save_pretrained(folder)
    number = len(SPECIAL) + len(LOWER)
    (folder / "added_tokens.json").write_text(json.dumps({"covid": number}))
    take_tokenizer(str(folder), tmp_path / "taken")
    assert load_tokenizer(tmp_path / "taken").get_vocab()["covid"] == number
