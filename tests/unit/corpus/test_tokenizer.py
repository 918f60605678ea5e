"""The trained WordPiece is repeatable, loads anywhere, and text cannot forge special tokens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fitb.corpus.tokenizer import (
    describe_tokenizer,
    open_tokenizer,
    take_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from fitb.errors import DataError


def test_special_tokens_are_the_first_five_ids(tokenizer_folder: Path) -> None:
    tokenizer, special = open_tokenizer(tokenizer_folder)
    assert [tokenizer.id_to_token(number) for number in range(5)] == [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    ]  # fmt: skip
    assert (special.pad, special.unk, special.cls, special.sep, special.mask) == (0, 1, 2, 3, 4)


def test_training_gives_the_same_bytes_in_another_process(
    tokenizer_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    code = (
        "import json, sys, pathlib\n"
        "from fitb.corpus.tokenizer import train_tokenizer\n"
        "texts = json.loads(pathlib.Path(sys.argv[1]).read_text())\n"
        "train_tokenizer(texts, 300, pathlib.Path(sys.argv[2]))\n"
    )
    again = tmp_path / "again"
    command = [sys.executable, "-c", code, str(tmp_path / "texts.json"), str(again)]
    subprocess.run(command, check=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        assert (again / name).read_bytes() == (tokenizer_folder / name).read_bytes()


def test_training_fills_the_vocabulary_and_learns_frequent_words(
    tokenizer_folder: Path,
) -> None:
    tokenizer, _ = open_tokenizer(tokenizer_folder)
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.encode("The Reader", add_special_tokens=False).tokens == ["the", "reader"]
    pieces = tokenizer.encode("rezqx9", add_special_tokens=False).tokens
    assert len(pieces) > 1
    assert all(piece.startswith("##") for piece in pieces[1:])


def test_no_printable_ascii_is_unknown_after_training_on_one_word(tmp_path: Path) -> None:
    train_tokenizer(["word word"], 256, tmp_path)
    tokenizer, special = open_tokenizer(tmp_path)
    text = "".join(map(chr, range(33, 127))) + " zqjx 0x9Z9"
    assert special.unk not in tokenizer.encode(text).ids


def test_text_about_special_tokens_gives_ordinary_tokens(tokenizer_folder: Path) -> None:
    tokenizer, _ = open_tokenizer(tokenizer_folder)
    ids = tokenizer.encode("[PAD] [CLS] [SEP] [MASK]", add_special_tokens=False).ids
    assert min(ids) >= 5


def test_transformers_loads_the_folder_as_a_fast_tokenizer(tokenizer_folder: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert loaded.is_fast
    ids = [getattr(loaded, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")]
    assert ids == [0, 1, 2, 3, 4]
    assert loaded.mask_token == "[MASK]"
    tokens = loaded.convert_ids_to_tokens(loaded("the [MASK] of order", "a").input_ids)
    assert tokens == ["[CLS]", "the", "[MASK]", "of", "order", "[SEP]", "a", "[SEP]"]


def test_a_given_tokenizer_keeps_its_fingerprint(tokenizer_folder: Path, tmp_path: Path) -> None:
    take_tokenizer(str(tokenizer_folder), tmp_path / "copy")
    assert tokenizer_fingerprint(tmp_path / "copy") == tokenizer_fingerprint(tokenizer_folder)
    ours, theirs = describe_tokenizer(tokenizer_folder), describe_tokenizer(tmp_path / "copy")
    assert ours["special_ids"] == theirs["special_ids"]
    assert ours["vocab_size"] == theirs["vocab_size"] == 300


def test_the_fingerprint_ignores_truncation_padding_and_layout_but_not_words(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 8}
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert tokenizer_fingerprint(tmp_path) == tokenizer_fingerprint(tokenizer_folder)
    content["model"]["vocab"]["new"] = 300
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_fingerprint(tmp_path) != tokenizer_fingerprint(tokenizer_folder)


def test_a_given_tokenizer_that_cannot_serve_is_refused_with_the_reason(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="'no/such/folder' not found") as caught:
        take_tokenizer("no/such/folder", tmp_path / "a")
    assert "\n" not in str(caught.value)

    no_mask = tmp_path / "no_mask"
    shutil.copytree(tokenizer_folder, no_mask)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (no_mask / name).read_text()
        (no_mask / name).write_text(text.replace("[MASK]", "[M]").replace('"mask_token"', '"x"'))
    with pytest.raises(DataError, match="has no mask_token"):
        take_tokenizer(str(no_mask), tmp_path / "b")

    wordless = tmp_path / "wordless"
    wordless.mkdir()
    (wordless / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="no words"):
        take_tokenizer(str(wordless), tmp_path / "c")


def test_a_folder_without_its_files_is_an_error_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        tokenizer_fingerprint(tmp_path)


def test_training_on_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no word"):
        train_tokenizer([""], 300, tmp_path)
