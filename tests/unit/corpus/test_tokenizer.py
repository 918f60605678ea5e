"""The trained WordPiece is repeatable, loads anywhere, and text cannot forge special tokens."""

import json
import re
import shutil
import subprocess
import sys
from string import ascii_lowercase

import pytest
from transformers import AutoTokenizer

from fitb.base.errors import DataError
from fitb.corpus.chunk import stream_of
from fitb.corpus.tokenizer import (
    add_tokens,
    added_tokens,
    describe_tokenizer,
    load_tokenizer,
    read_tokens,
    take_tokenizer,
    train_tokenizer,
)
from fitb.shards.tokenizer import open_tokenizer, tokenizer_fingerprint

TRAINING = """
import json, sys, pathlib
from fitb.corpus.tokenizer import train_tokenizer
texts = json.loads(pathlib.Path(sys.argv[1]).read_text())
train_tokenizer(texts, 300, pathlib.Path(sys.argv[2]))
"""


def test_training_gives_the_same_bytes_in_another_process(tokenizer_folder, texts, tmp_path):
    given, again = tmp_path / "texts.json", tmp_path / "again"
    given.write_text(json.dumps(texts))
    subprocess.run([sys.executable, "-c", TRAINING, given, again], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        assert (again / name).read_bytes() == (tokenizer_folder / name).read_bytes()


def test_training_fills_the_vocabulary_and_learns_frequent_words(tokenizer_folder):
    tokenizer, _ = open_tokenizer(tokenizer_folder)
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.encode("The Reader", add_special_tokens=False).tokens == ["the", "reader"]
    _, *rest = tokenizer.encode("rezqx9", add_special_tokens=False).tokens
    assert rest and all(piece.startswith("##") for piece in rest)


def test_no_printable_ascii_is_unknown_after_training_on_one_word(tmp_path):
    train_tokenizer(["word word"], 256, tmp_path)
    tokenizer, special = open_tokenizer(tmp_path)
    text = "".join(map(chr, range(33, 127))) + " zqjx 0x9Z9"
    assert special.unk not in tokenizer.encode(text).ids


HAN = [chr(0x4E00 + number) for number in range(2000)]
FOX = "the quick brown fox "
OTHERS = "".join(f"{a}{b}{a} " for a in ascii_lowercase for b in ascii_lowercase)


@pytest.mark.parametrize(
    ("texts", "size", "held", "most_han"),
    [
        ([OTHERS * 10, *HAN[:400] * 10], 1024, HAN[:400], 400),
        ([(FOX * 100 + OTHERS) * 1000, *HAN], 1024, FOX.split(), 256),
        (["".join(HAN[:200]), FOX * 100], 320, FOX.split(), 200),
    ],
    ids=["frequent symbols", "rare symbols", "few words"],
)
def test_a_vocabulary_holds_frequent_symbols_then_words_then_rare_symbols(
    tmp_path, texts, size, held, most_han
):
    """It held too few symbols, or stayed half empty, and characters were unknown."""
    train_tokenizer(texts, size, tmp_path)
    pieces = (tmp_path / "vocab.txt").read_text().split()
    assert set(held) <= set(pieces) and sum(piece in HAN for piece in pieces) <= most_han
    assert len(pieces) == size


@pytest.mark.parametrize(
    ("lowercase", "strip_accents", "words"),
    [
        (True, None, ["the", "mochte", "और"]),
        (True, False, ["the", "möchte", "के"]),
        (False, None, ["The", "Möchte", "के"]),
        (False, True, ["The", "Mochte"]),
    ],
)
def test_case_and_accents_are_kept_by_option(tmp_path, lowercase, strip_accents, words):
    texts = ["The Möchte के और"] * 50
    train_tokenizer(texts, 600, tmp_path, lowercase=lowercase, strip_accents=strip_accents)
    for tokenizer in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        cut = tokenizer.tokenize(texts[0])
        assert set(words) <= set(cut), cut


def test_a_small_cased_vocabulary_knows_frequent_letters_with_accents(tmp_path):
    texts = ["Der Bär möchte über große Äpfel"] * 20
    train_tokenizer(texts, 256, tmp_path, lowercase=False)
    assert "[UNK]" not in load_tokenizer(tmp_path).tokenize(texts[0])


def test_text_about_special_tokens_gives_ordinary_tokens(tokenizer_folder):
    tokenizer, _ = open_tokenizer(tokenizer_folder)
    assert min(ids_of(tokenizer, "[PAD] [CLS] [SEP] [MASK]")) >= 5


def test_transformers_loads_the_folder_as_a_fast_tokenizer(tokenizer_folder):
    loaded = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert loaded.is_fast
    ids = [getattr(loaded, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")]
    assert ids == [0, 1, 2, 3, 4]
    tokens = loaded.convert_ids_to_tokens(loaded("the [MASK] of order", "a").input_ids)
    assert tokens == ["[CLS]", "the", "[MASK]", "of", "order", "[SEP]", "a", "[SEP]"]


def test_the_fingerprint_ignores_truncation_padding_and_layout_but_not_words(
    tokenizer_folder, tmp_path
):
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 8}
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert tokenizer_fingerprint(tmp_path) == tokenizer_fingerprint(tokenizer_folder)
    content["model"]["vocab"]["new"] = 300
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_fingerprint(tmp_path) != tokenizer_fingerprint(tokenizer_folder)


def test_a_given_tokenizer_that_cannot_serve_is_refused_with_the_reason(copied, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (copied / name).read_text()
        (copied / name).write_text(text.replace("[MASK]", "[M]").replace('"mask_token"', '"x"'))
    for given, said in (("no/such/folder", "'no/such/folder' not found"), (copied, "mask_token")):
        with pytest.raises(DataError, match=said) as caught:
            take_tokenizer(str(given), tmp_path / "taken")
        assert "\n" not in str(caught.value)


def test_a_folder_without_its_files_is_an_error_that_names_them(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        tokenizer_fingerprint(tmp_path)


def test_training_on_nothing_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no word"):
        train_tokenizer([""], 300, tmp_path)


ADDED = ["covid", "TensorFlow", "state-of-the-art", "naïveté", "c++", ".net", "__init__", "x86_64"]


@pytest.fixture
def copied(tokenizer_folder, tmp_path):
    return shutil.copytree(tokenizer_folder, tmp_path / "copied")


@pytest.fixture
def extended(copied):
    return copied, add_tokens(copied, ADDED)


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_added_tokens_follow_the_vocabulary_and_name_the_pieces_they_replace(
    tokenizer_folder, extended
):
    folder, added = extended
    before, _ = open_tokenizer(tokenizer_folder)
    after, _ = open_tokenizer(folder)
    assert [entry["id"] for entry in added] == list(range(300, 300 + len(ADDED)))
    for token, entry in zip(ADDED, added, strict=True):
        assert entry["pieces"] == ids_of(before, token) and len(entry["pieces"]) > 1
        assert entry["token"] == before.normalizer.normalize_str(token)
        assert after.id_to_token(entry["id"]) == entry["token"]
    assert added_tokens(folder) == added


def test_an_added_token_is_one_word_in_any_case_with_its_offsets(extended):
    folder, added = extended
    tokenizer, special = open_tokenizer(folder)
    for token, entry in zip(ADDED, added, strict=True):
        for form in (token, token.lower(), token.upper()):
            text = f"the {form}, ({form}) rows {form}"
            encoding = tokenizer.encode(text, add_special_tokens=False)
            places = [i for i, number in enumerate(encoding.ids) if number == entry["id"]]
            assert len(places) == 3, form
            assert [text[slice(*encoding.offsets[i])] for i in places] == [form] * 3
            stream = stream_of([encoding], special.sep)
            words = encoding.word_ids
            for i in places:
                assert words.count(words[i]) == 1
                assert stream.starts[i] and (i + 1 == len(words) or stream.starts[i + 1])


def test_other_words_are_cut_as_before_also_those_that_hold_an_added_token(
    tokenizer_folder, texts, extended
):
    before, _ = open_tokenizer(tokenizer_folder)
    after, _ = open_tokenizer(extended[0])
    inside = ["covids", "recovid", "covid19", "tensorflows", "ac++", "x.nets", "my__init__s"]
    plain = [text.replace("state-of-the-art", "") for text in texts]
    for text in [*plain, *inside, " ".join(inside), "[MASK] [SEP] net c init naive"]:
        ours, theirs = (each.encode(text, add_special_tokens=False) for each in (after, before))
        for name in ("ids", "offsets", "word_ids"):
            assert getattr(ours, name) == getattr(theirs, name)
    alone = ids_of(before, "unbelievable")
    assert ids_of(after, "unbelievable covid unbelievable") == [*alone, 300, *alone]


def test_transformers_reads_writes_and_copies_added_tokens(extended, tmp_path):
    folder, added = extended
    load_tokenizer(folder).save_pretrained(tmp_path / "saved")
    take_tokenizer(str(folder), tmp_path / "taken")
    ours, _ = open_tokenizer(folder)
    text = "COVID covids and TensorFlow"
    for copy in (folder, tmp_path / "saved", tmp_path / "taken"):
        assert added_tokens(copy) == added
        assert tokenizer_fingerprint(copy) == tokenizer_fingerprint(folder)
        theirs = AutoTokenizer.from_pretrained(copy)
        assert theirs(text, add_special_tokens=False).input_ids == ids_of(ours, text)


def test_the_manifest_holds_what_was_added_and_the_fingerprint_without_it(
    tokenizer_folder, extended
):
    folder, added = extended
    entry = describe_tokenizer(folder)
    assert entry["added"] == added
    assert entry["vocab_size"] == 300 + len(added)
    assert entry["base_fingerprint"] == tokenizer_fingerprint(tokenizer_folder)
    assert entry["fingerprint"] == tokenizer_fingerprint(folder) != entry["base_fingerprint"]
    assert "added" not in describe_tokenizer(tokenizer_folder)


def test_tokens_that_are_one_piece_already_or_twice_are_not_added(extended):
    folder, added = extended
    before = (folder / "tokenizer.json").read_bytes()
    assert add_tokens(folder, [*ADDED, "COVID", "The", "[MASK]", "a"]) == []
    assert (folder / "tokenizer.json").read_bytes() == before
    more = add_tokens(folder, ["Numpy", "covid", "numpy"])
    assert [entry["token"] for entry in more] == ["numpy"]
    assert added_tokens(folder) == added + more


@pytest.mark.parametrize("token", ["\u6211\u4eec", "new york", "\u00ad", "##ing"])
def test_what_no_text_would_give_as_one_word_is_refused(tokenizer_folder, copied, token):
    with pytest.raises(DataError, match="no single word for this tokenizer"):
        add_tokens(copied, ["covid", token])
    assert tokenizer_fingerprint(copied) == tokenizer_fingerprint(tokenizer_folder)


def test_a_cased_tokenizer_matches_an_added_token_in_its_case(copied):
    content = json.loads((copied / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (copied / "tokenizer.json").write_text(json.dumps(content))
    number = add_tokens(copied, ["TensorFlow"])[0]["id"]
    tokenizer, _ = open_tokenizer(copied)
    assert tokenizer.encode("a TensorFlow").ids.count(number) == 1
    assert number not in tokenizer.encode("a tensorflow").ids


def test_a_file_of_tokens_is_read_in_order_without_blank_and_repeated_lines(tmp_path):
    path = tmp_path / "tokens.txt"
    path.write_bytes(b"\xef\xbb\xbfcovid\r\n\n  c++ \ncovid\nna\xc3\xafve")
    assert read_tokens(path) == ["covid", "c++", "na\u00efve"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "tokens.txt: No such file"),
        (b"covid\n\nnew york\n", "tokens.txt:3 is 'new york'; expected one word"),
        (b"##ing\n", "tokens.txt:1 is '##ing'"),
        (b"covid\n\xff\n", "tokens.txt:2 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_list_of_tokens_is_refused_with_the_line(tmp_path, content, said):
    path = tmp_path / "tokens.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_tokens(path)
    assert "\n" not in str(caught.value)
