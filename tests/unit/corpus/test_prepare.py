"""Preparing is repeatable to the byte, and the set holds what its manifest says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from preparing import MakeConfig, but_for_names, flags_of

from fitb.base.errors import ConfigError, DataError, SystemFault
from fitb.base.fsio import read_json
from fitb.config.parser import parse, parser_for
from fitb.corpus.clean import CleanConfig
from fitb.corpus.prepare import prepare
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.sorted_runs import split_of, text_digest
from fitb.shards.documents import MOST_DOCUMENTS
from fitb.shards.shard_set import ShardSet
from fitb.shards.tokenizer import open_tokenizer, tokenizer_fingerprint

SPLITS = ("train", "validation")


def hashes(folder: Path) -> list[str]:
    """The sha256 of the rows of each shard."""
    return [entry["sha256"] for entry in read_json(folder / "manifest.json")["shards"]]


def without_torch(*flags: str) -> list[str]:
    """A command that prepares, and fails if that needs torch."""
    code = (
        "import sys\n"
        "from fitb.cli import main\n"
        "code = main(['prepare', *sys.argv[1:]])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    return [sys.executable, "-c", code, *flags]


def test_another_process_number_of_workers_and_place_give_the_same_bytes(
    make_config: MakeConfig, shard_set: Path, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "moved::a.txt").write_bytes(text_file.read_bytes())  # a name, not a chain of URLs
    config = make_config(tmp_path / "other" / "set", files=["moved::a.txt"], workers=3)
    environment = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"}
    subprocess.run(
        without_torch(*flags_of(config)), check=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert but_for_names(shard_set) == but_for_names(tmp_path / "other" / "set")


def test_the_order_and_number_of_files_do_not_change_the_rows(
    make_config: MakeConfig, shard_set: Path, texts: list[str], tmp_path: Path
) -> None:
    for name, part in (("z.txt", texts[:150]), ("y.txt", texts[150:])):
        (tmp_path / name).write_text("\r\n\r\n".join(part), encoding="utf-8", newline="")
    files = [str(tmp_path / "z.txt"), str(tmp_path / "y.txt")]
    prepare(make_config(tmp_path / "set", files=files))
    ours, theirs = (read_json(f / "manifest.json") for f in (shard_set, tmp_path / "set"))
    assert ours["corpus_fingerprint"] == theirs["corpus_fingerprint"]
    assert hashes(shard_set) == hashes(tmp_path / "set")
    assert len(ours["shards"]) > 4


def test_the_manifest_says_what_the_set_is(shard_set: Path, texts: list[str]) -> None:
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


def test_shards_hold_the_documents_of_their_split_and_no_others(
    shard_set: Path, texts: list[str]
) -> None:
    tokenizer, special = open_tokenizer(shard_set / "tokenizer")
    for split in SPLITS:
        shards = ShardSet.open(shard_set, split)
        ids = shards.read(np.arange(shards.num_rows)).input_ids
        found = np.sort(ids[~np.isin(ids, (special.pad, special.cls, special.sep))])
        mine = [text for text in texts if split_of(text_digest(text), 0.1) == split]
        expected = [
            number
            for encoding in tokenizer.encode_batch(mine, add_special_tokens=False)
            for number in encoding.ids
        ]
        assert found.tolist() == sorted(expected)


@pytest.mark.parametrize("rows", ["packed", "document"])
def test_every_token_of_validation_leads_back_to_the_original_text(
    make_config: MakeConfig, text_file: Path, tmp_path: Path, rows: str
) -> None:
    prepare(make_config(tmp_path / "set", rows=rows))
    tokenizer, special = open_tokenizer(tmp_path / "set" / "tokenizer")
    shards = ShardSet.open(tmp_path / "set", "validation")
    assert read_json(tmp_path / "set" / "inputs.json") == [str(text_file)]
    source = text_file.read_bytes()
    ends = np.cumsum(shards.shard_rows)
    checked = 0
    for number, end in enumerate(ends):
        numbers = np.arange(end - shards.shard_rows[number], end)
        ids, offsets = shards.read(numbers).input_ids, shards.read_offsets(numbers)
        places = shards.documents(number)["place"].to_pylist()
        first = shards.document_numbers(numbers) % MOST_DOCUMENTS
        for row in range(len(numbers)):
            ordinal = int(first[row])
            for token, begin, stop in zip(
                ids[row], offsets.offset_begin[row], offsets.offset_end[row], strict=True
            ):
                if stop:
                    tail = source[places[ordinal] :].decode().partition("\n\n")[0].strip()
                    piece = tokenizer.id_to_token(int(token)).removeprefix("##")
                    same = tail[begin:stop].lower().replace("\u00e9", "e").replace("\u00ef", "i")
                    assert token == special.unk or piece == same
                    checked += 1
                elif token == special.sep:
                    ordinal += 1
    assert checked > 500


def test_document_rows_hold_one_document_each_and_windows_overlap(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    prepare(make_config(tmp_path / "set", rows="document", stride=15))
    _, special = open_tokenizer(tmp_path / "set" / "tokenizer")
    shards = ShardSet.open(tmp_path / "set", "validation")
    numbers = np.arange(shards.num_rows)
    ids, offsets = shards.read(numbers).input_ids, shards.read_offsets(numbers)
    assert ((ids == special.sep).sum(axis=1) == 1).all()
    document = shards.document_numbers(numbers)
    again = document[1:] == document[:-1]
    assert again.any()
    begins = offsets.offset_begin[:, 1]
    ends = offsets.offset_end.max(axis=1)
    assert (begins[1:][again] < ends[:-1][again]).all()
    assert (begins[1:][again] > begins[:-1][again]).all()


def test_the_tokenizer_never_sees_validation_text(
    make_config: MakeConfig, tmp_path: Path, texts: list[str]
) -> None:
    validation = [text for text in texts if split_of(text_digest(text), 0.1) == "validation"]
    folders = []
    for name, rest in (("a", validation[:2]), ("b", validation)):
        kept = [text for text in texts if text not in validation] + rest
        (tmp_path / f"{name}.txt").write_text("\n\n".join(kept), encoding="utf-8")
        prepare(make_config(tmp_path / name, files=[str(tmp_path / f"{name}.txt")]))
        folders.append(tmp_path / name)
    fingerprints = [tokenizer_fingerprint(folder / "tokenizer") for folder in folders]
    assert fingerprints[0] == fingerprints[1]
    manifests = [read_json(folder / "manifest.json") for folder in folders]
    assert manifests[0]["fingerprint"] != manifests[1]["fingerprint"]


def test_a_dropped_document_leaves_its_place_and_reason(
    make_config: MakeConfig, tmp_path: Path, texts: list[str]
) -> None:
    lines = [*texts[:300], "short", texts[7], "\u13a0\u13a1 \u13a2", " \u200b "]
    data = b"".join(line.encode() + b"\n" for line in lines) + b"caf\xe9 in another code\n"
    path = tmp_path / "lines.txt"
    path.write_bytes(data)
    clean = CleanConfig(min_chars=6)
    config = make_config(tmp_path / "set", files=[str(path)], document="line", clean=clean)
    prepare(config)
    manifest = read_json(tmp_path / "set" / "manifest.json")
    reasons = {"duplicate": 1, "empty": 1, "invalid_utf8": 1, "too_short": 2}
    assert manifest["dropped"] == reasons
    table = pq.read_table(tmp_path / "set" / "dropped.parquet").to_pylist()
    found = {row["rule"]: data[row["place"] :].split(b"\n")[0] for row in table}
    assert found["invalid_utf8"] == b"caf\xe9 in another code"
    assert found["duplicate"] == texts[7].encode()
    assert manifest["statistics"]["documents"] == 300


def test_a_document_of_unknown_symbols_only_is_counted_and_left_out(
    make_config: MakeConfig, tmp_path: Path, texts: list[str], shard_set: Path
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join([*texts, "\u13a0\u13a1 \u13a2\u13a3"]), encoding="utf-8")
    given = str(shard_set / "tokenizer")
    prepare(make_config(tmp_path / "set", files=[str(path)], tokenizer=given))
    manifest = read_json(tmp_path / "set" / "manifest.json")
    assert manifest["dropped"] == {"unknown": 1}
    assert manifest["statistics"]["documents"] == len(texts)
    assert hashes(shard_set) == hashes(tmp_path / "set")


def test_near_duplicates_go_at_any_number_of_workers(
    make_config: MakeConfig, tmp_path: Path, texts: list[str]
) -> None:
    long = [" ".join(texts[n : n + 8]) for n in range(0, 160, 8)]
    edited = [text.replace("reader", "writer", 1) for text in long[:10]]
    assert len(set(long) & set(edited)) < 5
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join([*long, *edited]), encoding="utf-8")
    found = []
    for workers in (1, 2):
        out = tmp_path / f"set{workers}"
        prepare(make_config(out, files=[str(path)], near_duplicates=0.8, workers=workers))
        found.append(but_for_names(out))
    assert found[0] == found[1]
    manifest = found[0][1]
    unequal = len(set(edited) - set(long))
    assert manifest["dropped"]["near_duplicate"] == unequal
    assert manifest["statistics"]["documents"] == len(long)


def test_a_given_tokenizer_is_used_and_known_by_content_not_by_name(
    make_config: MakeConfig, shard_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare(make_config(out, tokenizer=str(shard_set / "tokenizer")))
    fingerprint = tokenizer_fingerprint(shard_set / "tokenizer")
    assert tokenizer_fingerprint(out / "tokenizer") == fingerprint
    manifests = [read_json(folder / "manifest.json") for folder in (shard_set, out)]
    assert manifests[0]["shards"] == manifests[1]["shards"]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    prepare(make_config(out, tokenizer=str(out / "tokenizer")))


def test_added_tokens_are_single_tokens_of_the_set(
    make_config: MakeConfig, shard_set: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokens.txt").write_text("quokkas\nwombats\n")
    for name, given in (("given", str(shard_set / "tokenizer")), ("trained", None)):
        asked = {"add_tokens": str(tmp_path / "tokens.txt"), "tokenizer": given}
        prepare(make_config(tmp_path / name, **asked))
        tokenizer, _ = open_tokenizer(tmp_path / name / "tokenizer")
        found = tokenizer.encode("the Quokkas read", add_special_tokens=False)
        assert "quokkas" in found.tokens
        added = read_json(tmp_path / name / "manifest.json")["tokenizer"]["added"]
        assert [entry["token"] for entry in added] == ["quokkas", "wombats"]


def test_too_little_text_is_an_error_that_says_what_to_do(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    path = tmp_path / "few.txt"
    path.write_text("one\n\ntwo\n\nthree")
    with pytest.raises(DataError, match=r"validation split: 3 documents .* raise the"):
        prepare(make_config(tmp_path / "out", files=[str(path)], validation_fraction=1e-6))
    with pytest.raises(DataError, match=r"train split: 3 documents .* lower the"):
        prepare(make_config(tmp_path / "out", files=[str(path)], validation_fraction=1 - 1e-6))
    path.write_text("one and the same\n\n" * 500)
    with pytest.raises(DataError, match=r"500 documents \(repeated ones too\)"):
        prepare(make_config(tmp_path / "out", files=[str(path)], validation_fraction=0.5))
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
def test_settings_that_cannot_work_are_refused(
    make_config: MakeConfig, changes: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=list(changes)[-1]):
        make_config(Path("out"), **changes)


def test_defaults_parse_and_every_setting_has_help() -> None:
    assert parse(PrepareConfig, "fitb prepare", ["--out", "x"]) == PrepareConfig(out="x")
    actions = {action.dest: action.help for action in parser_for(PrepareConfig, "p")._actions}
    assert all(actions[name] for name in PrepareConfig.__dataclass_fields__ if name != "clean")
    assert all(actions[f"clean.{name}"] for name in CleanConfig.__dataclass_fields__)


def test_a_link_is_followed_and_a_place_that_cannot_be_is_named_at_once(
    make_config: MakeConfig, tmp_path: Path
) -> None:
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


def test_a_mount_point_is_refused_before_any_work(
    make_config: MakeConfig, small_disk: Path
) -> None:
    with pytest.raises(DataError, match="is a mount point"):
        prepare(make_config(small_disk))
