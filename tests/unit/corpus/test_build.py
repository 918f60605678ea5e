"""Preparing is repeatable to the byte, whole or not at all, and never overwrites another set."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fitb.corpus import build
from fitb.corpus.build import PrepareConfig, prepare
from fitb.corpus.dedupe import text_digest
from fitb.corpus.shards import ShardSet
from fitb.corpus.spool import split_of
from fitb.corpus.tokenizer import open_tokenizer, tokenizer_fingerprint
from fitb.errors import ConfigError, DataError
from fitb.flags import parse, parser_for
from fitb.fsio import read_json

MakeConfig = Callable[..., PrepareConfig]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_same_text_gives_the_same_bytes_in_another_place_process_and_file_order(
    shard_set: Path, texts: list[str], tmp_path: Path
) -> None:
    for name, part in (("z.txt", texts[:150]), ("y.txt", texts[150:])):
        (tmp_path / name).write_text("\r\n\r\n".join(part), encoding="utf-8", newline="")
    code = (
        "import sys\n"
        "from fitb.flags import parse\n"
        "from fitb.corpus.build import PrepareConfig, prepare\n"
        "prepare(parse(PrepareConfig, 'prepare', sys.argv[1:]))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    flags = ["--out", "other/set", "--source", "text", "--files", '["z.txt", "y.txt"]']
    flags += ["--vocab_size", "300", "--length", "32", "--shard_rows", "100"]
    flags += ["--validation_fraction", "0.1"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(build.__file__).parents[2]),
        "TZ": "Asia/Tokyo",
    }
    command = [sys.executable, "-c", code, *flags]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    ours, theirs = contents(shard_set), contents(tmp_path / "other" / "set")
    manifests = [json.loads(found.pop("manifest.json")) for found in (ours, theirs)]
    assert ours == theirs
    for manifest in manifests:
        del manifest["settings"]["files"]
    assert manifests[0] == manifests[1]


def test_the_manifest_says_what_the_set_is(shard_set: Path, texts: list[str]) -> None:
    manifest = read_json(shard_set / "manifest.json")
    assert manifest["length"] == 32
    assert manifest["tokenizer"]["fingerprint"] == tokenizer_fingerprint(shard_set / "tokenizer")
    for name in manifest["tokenizer"]["files"]:
        assert (shard_set / "tokenizer" / name).is_file()
    statistics = manifest["statistics"]
    assert statistics["documents"] == len(texts)
    assert statistics["duplicates"] == statistics["dropped"] == 0
    assert 0 < statistics["unknown_share"] < 0.1
    assert 0 <= statistics["padding_share"] < 0.01
    assert len(manifest["sample"]) == 5
    assert all(len(text) <= 160 for text in manifest["sample"])
    for split in ("train", "validation"):
        rows = sum(entry["rows"] for entry in manifest["shards"] if entry["split"] == split)
        assert rows == manifest["splits"][split]["rows"] == ShardSet.open(shard_set, split).num_rows


def test_shards_hold_the_documents_of_their_split_and_no_others(
    shard_set: Path, texts: list[str]
) -> None:
    tokenizer, special = open_tokenizer(shard_set / "tokenizer")
    for split in ("train", "validation"):
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


def test_preparing_again_does_nothing_and_says_so(
    make_config: MakeConfig, shard_set: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in shard_set.rglob("*")}
    with caplog.at_level(logging.INFO, logger="fitb"):
        assert prepare(make_config(shard_set)) == shard_set / "manifest.json"
    assert "nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in shard_set.rglob("*")} == before


def test_another_set_in_the_folder_is_refused_with_what_differs(
    make_config: MakeConfig, shard_set: Path, text_file: Path, tmp_path: Path
) -> None:
    before = contents(shard_set)
    with pytest.raises(DataError, match=r"other settings \(length: 32 -> 64; seed: 0 -> 3\)"):
        prepare(make_config(shard_set, length=64, seed=3))
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text(encoding="utf-8") + "\n\none more text of words\n")
    with pytest.raises(DataError, match="other text"):
        prepare(make_config(shard_set, files=[str(other)]))
    assert contents(shard_set) == before


def test_a_folder_with_other_files_is_refused_and_an_empty_one_used(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="no shard set"):
        prepare(make_config(out))
    assert contents(out) == {"thesis.tex": b"precious"}
    (out / "thesis.tex").unlink()
    assert prepare(make_config(out)).exists()


@pytest.mark.parametrize("place", ["spool", "train_tokenizer", "write_shard", "write_json"])
def test_an_interrupted_run_leaves_nothing(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(make_config(tmp_path / "sets" / "out"))
    assert list((tmp_path / "sets").iterdir()) == []


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


def test_too_little_text_is_an_error_that_says_what_to_do(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    path = tmp_path / "few.txt"
    path.write_text("one\n\ntwo\n\nthree")
    with pytest.raises(DataError, match=r"validation split: 3 different documents .* raise the"):
        prepare(make_config(tmp_path / "out", files=[str(path)], validation_fraction=1e-6))
    with pytest.raises(DataError, match=r"train split: 3 different documents .* lower the"):
        prepare(make_config(tmp_path / "out", files=[str(path)], validation_fraction=1 - 1e-6))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"source": "docstrings"},
        {"vocab_size": 255},
        {"length": 7},
        {"validation_fraction": 0.0},
        {"validation_fraction": 1.0},
        {"shard_rows": 0},
        {"max_mb": 0.0},
    ],
)
def test_settings_that_cannot_work_are_refused(
    make_config: MakeConfig, changes: dict[str, object]
) -> None:
    with pytest.raises(ConfigError):
        make_config(Path("out"), **changes)


def test_defaults_parse_and_every_setting_has_help() -> None:
    assert parse(PrepareConfig, "fitb prepare", ["--out", "x"]) == PrepareConfig(out="x")
    actions = {action.dest: action.help for action in parser_for(PrepareConfig, "p")._actions}
    assert all(actions[name] for name in PrepareConfig.__dataclass_fields__)


def test_the_corpus_room_imports_no_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, fitb.corpus\n"
        "for found in pkgutil.iter_modules(fitb.corpus.__path__, 'fitb.corpus.'):\n"
        "    importlib.import_module(found.name)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'deepspeed'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
