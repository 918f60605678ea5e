"""Masked words of real shards: their text, their capitals, their categories."""

import gzip
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluating import write_shards
from tokenizers import Tokenizer, normalizers

from fitb.corpus.source_text import read_source_texts
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.masking import Vocabulary, word_numbers
from fitb.evaluation.categories import GROUPS
from fitb.evaluation.words import Categoriser
from fitb.shards.shard_set import ShardSet

DOCUMENTS = [
    "It is said that Paris calls os.path.join with some_value of 3.14 at https://example.org/a now",
    "There the reader of BertModel looks at 42 pages in London and sleeps",
    "Nobody knows why the brown fox jumps over the lazy dog in Ur or www.example.org today",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards of a text file; each document comes with a number of its own."""
    return make(tmp_path_factory.mktemp("words"), 120)


def make(folder, number=60, **changes):
    texts = [f"{DOCUMENTS[i % 3]} number {i}" for i in range(number)]
    write_shards(folder, texts, shard_mb=0.002, **changes)
    return folder


def found_in(folder, split="validation"):
    """Category by text -> the pieces of the words that have it, joined."""
    shards = ShardSet.open(folder / "shards", split)
    tokenizer = load_tokenizer(shards.tokenizer_folder)
    vocabulary, rows = Vocabulary.of(tokenizer), np.arange(shards.num_rows)
    categoriser = Categoriser.of(shards, rows, vocabulary, tokenizer)
    read = shards.read(rows)
    words = word_numbers(read.input_ids, read.word_starts, vocabulary)
    masked = np.zeros(words.shape, dtype=bool)
    for i in range(len(rows)):
        masked[i, np.unique(words[i][words[i] >= 0])] = True
    groups = categoriser.groups(rows, read.input_ids, words, masked)
    found = {name: set() for name in GROUPS}
    for i in range(len(rows)):
        for word in np.flatnonzero(masked[i]):
            pieces = [categoriser.pieces[t] for t in read.input_ids[i][words[i] == word]]
            text = pieces[0] + "".join(piece.removeprefix("##") for piece in pieces[1:])
            for name, holds in zip(GROUPS, groups[i, word], strict=True):
                if holds:
                    found[name].add(text)
            assert groups[i, word, GROUPS.index("single_piece")] == (len(pieces) == 1)
            assert groups[i, word, GROUPS.index("multi_piece")] == (len(pieces) > 1)
    return found, categoriser


def test_capitals_of_a_lowercase_tokenizer_come_from_the_input(folder):
    found, categoriser = found_in(folder)
    assert found["name"] == {"paris", "london", "ur"}
    assert {"bertmodel", "os", "join", "some", "_", "value"} <= found["identifier"]
    assert {"https", "example", "www"} <= found["url"]
    assert {"3", "14", "42"} <= found["number"]
    wanted = categoriser.shards.manifest["splits"]["validation"]["documents"]
    assert categoriser.missing == {} and categoriser.found == (wanted, wanted)


def gone(folder):
    (folder / "text.txt").unlink()


def changed(folder, old="e", new="E"):
    text = (folder / "text.txt").read_text().replace(old, new)
    (folder / "text.txt").write_text(text)


def unnamed(folder):
    (folder / "shards" / "inputs.json").unlink()


@pytest.mark.parametrize(
    ("harm", "said"),
    [(gone, "No such file"), (changed, "has changed"), (unnamed, "which lists the input")],
)
def test_without_the_input_no_name_is_told_and_the_rest_is(tmp_path, harm, said):
    whole, _ = found_in(make(tmp_path))
    harm(tmp_path)
    found, categoriser = found_in(tmp_path)
    assert list(categoriser.missing) == ["name"] and said in categoriser.missing["name"]
    assert found["name"] == set()
    assert whole["identifier"] - found["identifier"] == {"bertmodel"}
    for name in ("url", "number", "single_piece", "multi_piece"):
        assert found[name] == whole[name]


def test_documents_that_have_changed_are_not_taken_and_the_others_are(tmp_path):
    make(tmp_path)
    changed(tmp_path, "London", "Lisbon")
    found, categoriser = found_in(tmp_path)
    number, wanted = categoriser.found
    assert 0 < number < wanted
    assert found["name"] == {"paris", "ur"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "gz"])
def test_originals_are_found_in_every_kind_of_local_file(tmp_path, kind):
    texts = [f"{DOCUMENTS[i % 3]} number {i}" for i in range(60)]
    path = tmp_path / f"input.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
    else:
        path.write_bytes(gzip.compress("\n\n".join(texts).encode()))
    make(tmp_path, source="text" if kind == "gz" else kind, files=[str(path)])
    found, categoriser = found_in(tmp_path)
    assert found["name"] == {"paris", "london", "ur"}
    assert categoriser.found[0] == categoriser.found[1]


def test_docstrings_are_read_again_from_their_python_files(shards):
    one = ShardSet.open(shards, "validation")
    ends = Vocabulary.of_folder(one.tokenizer_folder)
    rows = np.arange(0, one.num_rows, 40)
    originals = read_source_texts(one, rows, sep_id=ends.sep_id, pad_id=ends.pad_id)
    assert originals.reason == "" and len(originals.texts) == originals.wanted > 5
    assert any(text != text.lower() for text in originals.texts.values())


def test_a_cased_tokenizer_needs_no_input(folder, tmp_path):
    cased = tmp_path / "tokenizer"
    shutil.copytree(folder / "shards" / "tokenizer", cased)
    tokenizer = Tokenizer.from_file(str(cased / "tokenizer.json"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    words = sorted({word for text in DOCUMENTS for word in text.split() if word.isalpha()})
    tokenizer.add_tokens([word for word in words if word != word.lower()])
    tokenizer.save(str(cased / "tokenizer.json"))
    make(tmp_path, tokenizer=str(cased))
    gone(tmp_path)
    found, categoriser = found_in(tmp_path)
    assert categoriser.missing == {} and categoriser.found == (0, 0)
    assert {"Paris", "London", "Ur"} <= found["name"]
    assert not found["name"] & {"It", "There", "Nobody"}


def test_a_split_without_offsets_tells_pieces_alone(folder):
    found, categoriser = found_in(folder, "train")
    assert set(categoriser.missing) == {"url", "identifier", "number", "name"}
    assert "no offsets" in categoriser.missing["name"]
    assert found["multi_piece"] and found["single_piece"]
    assert not found["url"] | found["identifier"] | found["number"] | found["name"]
