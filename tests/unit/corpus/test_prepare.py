"""Preparing is repeatable to the byte, and the set holds what its manifest says."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from preparing import but_for_names, flags_of, put

from fitb.base.errors import ConfigError, DataError, SystemFault
from fitb.base.fsio import read_json
from fitb.config.parser import parse, parser_for
from fitb.corpus.clean import CleanConfig
from fitb.corpus.prepare import prepare
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.sorted_runs import split_of, text_digest
from fitb.shards.documents import MOST_DOCUMENTS, documents_at
from fitb.shards.shard_set import ShardSet
from fitb.shards.tokenizer import open_tokenizer, tokenizer_fingerprint

SPLITS = ("train", "validation")


def of(folder):
    return read_json(folder / "manifest.json")


def hashes(manifest):
    """The sha256 of the rows of each shard."""
    return [entry["sha256"] for entry in manifest["shards"]]


WITHOUT_TORCH = """
import sys
from fitb.cli import main
code = main(["prepare", *sys.argv[1:]])
assert "torch" not in sys.modules
sys.exit(code)
"""


def test_another_process_number_of_workers_and_place_give_the_same_bytes(
    make_config, shard_set, text_file, tmp_path
):
    (tmp_path / "moved::a.txt").write_bytes(text_file.read_bytes())  # a name, not a chain of URLs
    config = make_config(tmp_path / "other" / "set", files=["moved::a.txt"], workers=3)
    command = [sys.executable, "-c", WITHOUT_TORCH, *flags_of(config)]
    environment = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=120)
    assert but_for_names(shard_set) == but_for_names(tmp_path / "other" / "set")


def test_the_order_and_number_of_files_do_not_change_the_rows(made, shard_set, texts, tmp_path):
    for name, part in (("z.txt", texts[:150]), ("y.txt", texts[150:])):
        (tmp_path / name).write_text("\r\n\r\n".join(part), encoding="utf-8", newline="")
    ours, theirs = of(shard_set), of(made(files=[str(tmp_path / f"{name}.txt") for name in "zy"]))
    assert ours["corpus_fingerprint"] == theirs["corpus_fingerprint"]
    assert hashes(ours) == hashes(theirs)
    assert len(ours["shards"]) > 4


def test_the_manifest_says_what_the_set_is(shard_set, texts):
    manifest = read_json(shard_set / "manifest.json")
    assert manifest["length"] == 32
    assert manifest["tokenizer"]["fingerprint"] == tokenizer_fingerprint(shard_set / "tokenizer")
    for name in manifest["tokenizer"]["files"]:
        assert (shard_set / "tokenizer" / name).is_file()
    statistics = manifest["statistics"]
    assert statistics["documents"] == len(texts)
    assert manifest["algorithms"] == {"rows": 1}
    assert manifest["dropped"] == {}
    assert 0 <= statistics["unknown_share"] < 0.1
    assert 0 <= statistics["padding_share"] < 0.02
    assert len(manifest["sample"]) == 5
    assert all(len(text) <= 160 for text in manifest["sample"])
    for split in SPLITS:
        rows = sum(entry["rows"] for entry in manifest["shards"] if entry["split"] == split)
        assert rows == manifest["splits"][split]["rows"] == ShardSet.open(shard_set, split).num_rows
    assert set(manifest["versions"]) == {"datasets", "numpy", "pyarrow", "tokenizers"}
    assert manifest["settings"]["seed"] == 0


def test_shards_hold_the_documents_of_their_split_and_no_others(shard_set, texts):
    tokenizer, special = open_tokenizer(shard_set / "tokenizer")
    for split in SPLITS:
        shards = ShardSet.open(shard_set, split)
        ids = shards.read(np.arange(shards.num_rows)).input_ids
        found = np.sort(ids[~np.isin(ids, (special.pad, special.cls, special.sep))])
        mine = [text for text in texts if split_of(text_digest(text), 0.1) == split]
        encodings = tokenizer.encode_batch(mine, add_special_tokens=False)
        assert found.tolist() == sorted(id for encoding in encodings for id in encoding.ids)


@pytest.mark.parametrize("changes", [{}, {"rows": "document", "stride": 15}])
def test_every_token_of_validation_leads_back_to_the_original_text(made, text_file, changes):
    folder = made(**changes)
    tokenizer, special = open_tokenizer(folder / "tokenizer")
    shards = ShardSet.open(folder, "validation")
    assert read_json(folder / "inputs.json") == [str(text_file)]
    source = text_file.read_bytes()
    places = {
        number * MOST_DOCUMENTS + ordinal: place
        for number in range(len(shards.shard_rows))
        for ordinal, place in enumerate(shards.documents(number)["place"].to_pylist())
    }
    rows = np.arange(shards.num_rows)
    ids, offsets = shards.read(rows).input_ids, shards.read_offsets(rows)
    first = shards.document_numbers(rows)
    numbers = documents_at(ids, first, sep_id=special.sep, pad_id=special.pad)
    columns = (ids, numbers, offsets.offset_begin, offsets.offset_end)
    tokens = list(zip(*(column[numbers >= 0].tolist() for column in columns), strict=True))
    assert len(tokens) > 500
    for token, number, begin, end in tokens:
        text = source[places[number] :].decode().partition("\n\n")[0].strip()
        same = text[begin:end].lower().replace("\u00e9", "e").replace("\u00ef", "i")
        assert token == special.unk or tokenizer.id_to_token(token).removeprefix("##") == same
    if changes:  # one document in a row, and its windows overlap
        assert ((ids == special.sep).sum(axis=1) == 1).all()
        again = first[1:] == first[:-1]
        begins, ends = offsets.offset_begin[:, 1], offsets.offset_end.max(axis=1)
        assert again.any() and (begins[1:][again] < ends[:-1][again]).all()
        assert (begins[1:][again] > begins[:-1][again]).all()


def test_the_tokenizer_never_sees_validation_text(made, tmp_path, texts):
    validation = [text for text in texts if split_of(text_digest(text), 0.1) == "validation"]
    folders = []
    for name, rest in (("a", validation[:2]), ("b", validation)):
        kept = [text for text in texts if text not in validation] + rest
        folders.append(made(name, files=put(tmp_path / f"{name}.txt", kept)))
    assert len({tokenizer_fingerprint(folder / "tokenizer") for folder in folders}) == 1
    assert len({of(folder)["fingerprint"] for folder in folders}) == 2


def test_a_dropped_document_leaves_its_place_and_reason(made, tmp_path, texts):
    lines = [*texts[:300], "short", texts[7], "\u13a0\u13a1 \u13a2", " \u200b "]
    data = b"".join(line.encode() + b"\n" for line in lines) + b"caf\xe9 in another code\n"
    path = tmp_path / "lines.txt"
    path.write_bytes(data)
    clean = CleanConfig(min_chars=6)
    folder = made(files=[str(path)], document="line", clean=clean)
    manifest = of(folder)
    reasons = {"duplicate": 1, "empty": 1, "invalid_utf8": 1, "too_short": 2}
    assert manifest["dropped"] == reasons
    table = pq.read_table(tmp_path / "set" / "dropped.parquet").to_pylist()
    found = {row["rule"]: data[row["place"] :].split(b"\n")[0] for row in table}
    assert found["invalid_utf8"] == b"caf\xe9 in another code"
    assert found["duplicate"] == texts[7].encode()
    assert manifest["statistics"]["documents"] == 300


def test_a_document_of_unknown_symbols_only_is_counted_and_left_out(
    made, tmp_path, texts, shard_set
):
    files = put(tmp_path / "texts.txt", [*texts, "\u13a0\u13a1 \u13a2\u13a3"])
    manifest = of(made(files=files, tokenizer=str(shard_set / "tokenizer")))
    assert manifest["dropped"] == {"unknown": 1}
    assert manifest["statistics"]["documents"] == len(texts)
    assert hashes(manifest) == hashes(of(shard_set))


def test_near_duplicates_go_at_any_number_of_workers(made, tmp_path, texts):
    long = [" ".join(texts[n : n + 8]) for n in range(0, 160, 8)]
    edited = [text.replace("reader", "writer", 1) for text in long[:10]]
    assert len(set(long) & set(edited)) < 5
    files = put(tmp_path / "texts.txt", [*long, *edited])
    found = [
        but_for_names(made(f"set{workers}", files=files, near_duplicates=0.8, workers=workers))
        for workers in (1, 2)
    ]
    assert found[0] == found[1]
    manifest = found[0][1]
    unequal = len(set(edited) - set(long))
    assert manifest["dropped"]["near_duplicate"] == unequal
    assert manifest["statistics"]["documents"] == len(long)


def test_a_given_tokenizer_is_used_and_known_by_content_not_by_name(made, shard_set):
    out = made(tokenizer=str(shard_set / "tokenizer"))
    assert of(out)["shards"] == of(shard_set)["shards"]
    assert of(out)["fingerprint"] == of(shard_set)["fingerprint"]
    assert made(tokenizer=str(out / "tokenizer")) == out


@pytest.mark.parametrize("is_given", [True, False])
def test_added_tokens_are_single_tokens_of_the_set(made, shard_set, tmp_path, is_given):
    (tmp_path / "tokens.txt").write_text("quokkas\nwombats\n")
    given = str(shard_set / "tokenizer") if is_given else None
    folder = made(add_tokens=str(tmp_path / "tokens.txt"), tokenizer=given)
    tokenizer, _ = open_tokenizer(folder / "tokenizer")
    assert "quokkas" in tokenizer.encode("the Quokkas read", add_special_tokens=False).tokens
    assert [entry["token"] for entry in of(folder)["tokenizer"]["added"]] == ["quokkas", "wombats"]


@pytest.mark.parametrize(
    ("few", "fraction", "said"),
    [
        (["one", "two", "three"], 1e-6, "validation split: 3 documents .* raise the"),
        (["one", "two", "three"], 1 - 1e-6, "train split: 3 documents .* lower the"),
        (["one and the same"] * 500, 0.5, r"500 documents \(repeated ones too\)"),
    ],
)
def test_too_little_text_is_an_error_that_says_what_to_do(made, tmp_path, few, fraction, said):
    files = put(tmp_path / "few.txt", few)
    with pytest.raises(DataError, match=said):
        made(files=files, validation_fraction=fraction)
    assert [entry.name for entry in tmp_path.iterdir()] == ["few.txt"]


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"source": "docstrings"},
        {"source": "hf", "files": ["a", "b"]},
        {"vocab_size": 255},
        {"length": 7},
        {"validation_fraction": 0.0},
        {"validation_fraction": 1.0},
        {"shard_mb": 0.0},
        {"max_mb": 0.0},
        {"max_document_mb": 0.0},
        {"workers": 0},
        *({"near_duplicates": jaccard} for jaccard in (0.2, 1.01, -1.0, float("nan"))),
        {"stride": 8},
        {"rows": "document", "stride": 31},
    ],
)
def test_settings_that_cannot_work_are_refused(make_config, changes):
    with pytest.raises(ConfigError, match=list(changes)[-1]):
        make_config(Path("out"), **changes)


def test_defaults_parse_and_every_setting_has_help():
    assert parse(PrepareConfig, "fitb prepare", ["--out", "x"]) == PrepareConfig(out="x")
    actions = {action.dest: action.help for action in parser_for(PrepareConfig, "p")._actions}
    assert all(actions[name] for name in PrepareConfig.__dataclass_fields__ if name != "clean")
    assert all(actions[f"clean.{name}"] for name in CleanConfig.__dataclass_fields__)


def test_a_link_is_followed_and_a_place_that_cannot_be_is_named_at_once(make_config, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "set")
    prepare(make_config(tmp_path / "link"))
    assert (tmp_path / "real" / "set" / "manifest.json").exists()
    assert prepare(make_config(tmp_path / "link")).exists()
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "x", Path("/proc/nope/x"), tmp_path / ("n" * 250)):
        with pytest.raises(SystemFault, match="cannot be made: .*; name another folder"):
            prepare(make_config(place))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "real"]


def test_a_mount_point_is_refused_before_any_work(make_config, small_disk):
    with pytest.raises(DataError, match="is a mount point"):
        prepare(make_config(small_disk))
