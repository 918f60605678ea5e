"""A manifest is held against itself when a set is opened, against a file when that is mapped."""

import copy
import hashlib
import json
import os

import numpy as np
import pyarrow as pa
import pytest
from shard_files import random_columns, write_manifest, write_set

from fitb.base.errors import DataError
from fitb.base.fsio import read_json, sha256_file
from fitb.shards.shard_set import ShardSet


def leaves(value, *path):
    """Where the numbers and texts of a JSON value stand."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, *path, key)
    else:
        yield path


def changed(manifest, path, value):
    """A copy with another value somewhere."""
    result = copy.deepcopy(manifest)
    where = result
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    return result


def refused(folder, manifest):
    """Write a manifest as it is, and return why no split of it is opened."""
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError) as caught:
        ShardSet.open(folder, "train")
    message = str(caught.value)
    assert str(folder / "manifest.json") in message and "fitb prepare" in message
    return message


def test_no_digit_of_what_rows_depend_on_can_change(copied):
    manifest = read_json(copied / "manifest.json")
    parts = {"length": 0, "fingerprint": "", "shards": manifest["shards"][:2]}
    parts["splits"] = {split: {"rows": 0, "documents": 0} for split in manifest["splits"]}
    places = list(leaves(parts))
    assert len(places) == 2 * 9 + 2 + 4
    for path in places:
        old = manifest
        for key in path:
            old = old[key]
        new = old + 1 if isinstance(old, int) else old[:-1] + ("0" if old[-1] != "0" else "1")
        refused(copied, changed(manifest, path, new))


COUNTS = [("shards", 0, "rows"), ("shards", 0, "bytes"), ("length",)]
NO_COUNTS = [-5, 0, True, 2.0, "7", None, 2**48, 10**18, [3]]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("shards", 0, "file"), "../train-00000.arrow", "without folders"),
        (("shards", 0, "file"), "", "without folders"),
        (("shards", 0, "file"), "a\0b", "without folders"),
        (("shards", 0, "documents_file"), "/etc/passwd", "without folders"),
        (("shards", 0, "file"), "train-00001.arrow", "2 times"),
        (("shards", 0, "file"), 3, "expected text"),
        (("shards", 0, "split"), "validation", "splits.train"),
        (("shards", 0, "sha256"), None, "expected text"),
        (("shards", 0), 3, "expected an object"),
        (("shards",), {}, "expected a list"),
        (("splits",), [], "expected a dict"),
        (("splits", "train"), {}, "expected rows"),
        (("splits", "other"), {"rows": 1}, "splits.other"),
        (("tokenizer", "files"), ["../tokenizer.json"], "without folders"),
        (("tokenizer", "files"), None, "tokenizer"),
        (("tokenizer", "vocab_size"), 0, "vocab_size"),
        (("settings",), 3, "settings"),
        *((path, value, f"{path[-1]}={value!r}") for path in COUNTS for value in NO_COUNTS),
    ],
)
def test_a_manifest_that_no_preparation_writes_is_refused_with_what_is_wrong(
    copied, path, value, named
):
    write_manifest(copied, changed(read_json(copied / "manifest.json"), path, value))
    assert named in refused(copied, read_json(copied / "manifest.json"))


def test_half_a_surrogate_pair_is_refused_and_not_hashed(copied):
    manifest = read_json(copied / "manifest.json")
    refused(copied, changed(manifest, ("shards", 0, "sha256"), "\ud800"))


def test_a_tokenizer_of_other_rows_is_refused_when_the_set_is_opened(copied):
    path = copied / "tokenizer" / "tokenizer.json"
    content = read_json(path)
    content["model"]["max_input_chars_per_word"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="is not the tokenizer of these shards.*fitb prepare"):
        ShardSet.open(copied, "train")


def reads(folder):
    shards = ShardSet.open(folder, "train")
    shards.read(np.arange(shards.num_rows))


@pytest.mark.parametrize("more", [-1, 1])
def test_rows_of_the_manifest_are_held_against_the_file(tmp_path, more):
    write_set(tmp_path, random_columns(20, 8), 7)
    manifest = read_json(tmp_path / "manifest.json")
    manifest["shards"][1]["rows"] += more
    manifest["splits"]["train"]["rows"] += more
    write_manifest(tmp_path, manifest)
    with pytest.raises(DataError, match=rf"train-00001\.arrow .*\[7\].* {7 + more} rows"):
        reads(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("length",), 9, "column input_ids"),
        (("tokenizer", "vocab_size"), 70_000, "column input_ids"),
        (("tokenizer", "vocab_size"), 290, "holds the id 299"),
    ],
)
def test_types_and_ids_of_a_file_are_held_against_the_manifest(tmp_path, path, value, named):
    columns = random_columns(20, 8)
    columns.input_ids[0, 3] = 299
    write_set(tmp_path, columns, 20)
    write_manifest(tmp_path, changed(read_json(tmp_path / "manifest.json"), path, value))
    with pytest.raises(DataError, match=named):
        reads(tmp_path)


def rewritten(folder, name, write):
    """Write a file of a set anew, and its bytes and sha256 into the manifest."""
    manifest = read_json(folder / "manifest.json")
    (entry,) = [entry for entry in manifest["shards"] if entry["file"] == name]
    write(folder / name)
    entry |= {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    write_manifest(folder, manifest)


def test_a_file_of_two_record_batches_is_refused_and_not_cut_short(tmp_path):
    write_set(tmp_path, random_columns(20, 8), 20)
    whole = pa.ipc.open_stream((tmp_path / "train-00000.arrow").read_bytes()).read_all()

    def write(path):
        with pa.ipc.new_stream(str(path), whole.schema) as writer:
            writer.write_table(whole, max_chunksize=15)

    rewritten(tmp_path, "train-00000.arrow", write)
    with pytest.raises(DataError, match=r"\[15, 5\].*expected one of 20 rows"):
        reads(tmp_path)


def test_what_is_no_arrow_stream_is_refused(tmp_path):
    write_set(tmp_path, random_columns(20, 8), 20)
    rewritten(tmp_path, "train-00000.arrow", lambda path: path.write_text("rows"))
    with pytest.raises(DataError, match="is not an Arrow stream"):
        reads(tmp_path)


def test_the_rows_that_are_read_are_those_that_were_hashed(tmp_path, monkeypatch):
    """A file that is replaced right after it was hashed, with as many rows of as many bytes."""
    columns, others = random_columns(20, 8), random_columns(20, 8)
    others.input_ids[:] = 7
    path, second = tmp_path / "train-00000.arrow", tmp_path / "second"
    second.mkdir()
    write_set(tmp_path, columns, 20)
    write_set(second, others, 20)
    other, shards, real = second / path.name, ShardSet.open(tmp_path, "train"), hashlib.sha256

    class Replacing:
        def __init__(self, data=b""):
            self._hash = real(data)
            self.update = self._hash.update

        def hexdigest(self):
            if other.exists():
                os.replace(other, path)
            return self._hash.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Replacing)
    read = shards.read(np.arange(20))
    assert not other.exists()
    assert (read.input_ids == columns.input_ids).all()


@pytest.mark.parametrize("algorithms", [{"rows": 2}, {"rows": 0}, {"packing": 1}, {"rows": "1"}, 1])
def test_rows_made_in_a_way_of_a_later_fitb_are_refused(copied, algorithms):
    manifest = read_json(copied / "manifest.json")
    assert str(algorithms) in refused(copied, {**manifest, "algorithms": algorithms})
    write_manifest(copied, {**manifest, "algorithms": {"rows": 1}})
    assert ShardSet.open(copied, "train").num_rows > 0
