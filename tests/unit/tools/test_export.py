"""An exported folder is whole or not there, works elsewhere, and its card says where it is from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel, pipeline

from fitb.base import fsio
from fitb.base.errors import ConfigError, ContractError, DataError, SystemFault
from fitb.base.world import World
from fitb.cli import main
from fitb.config import Config, DataConfig, Geometry, ModelConfig
from fitb.config.yaml import to_yaml
from fitb.corpus.tokenizer import load_tokenizer
from fitb.infer.scorer import load_scorer
from fitb.model.load import load_model
from fitb.rundir.checkpoints import best_checkpoint_of, checkpoint_of
from fitb.shards.manifest import read_manifest
from fitb.tools import export as ours
from fitb.tools.export import ExportConfig, Origin, export, find
from fitb.training import checkpoint

SMALL = Geometry(num_hidden_layers=2, hidden_size=24, intermediate_size=32, num_attention_heads=3)


@pytest.fixture
def make_run(tmp_path, shard_set):
    """A run on the shards of all tests, with checkpoints of steps 1 and 2, each its own weights."""

    def make(exported=False):
        run = tmp_path / "runs" / "mine"
        root = run / "checkpoints"
        fence = root / ".0001"
        fence.mkdir(parents=True)
        tokenizer = load_tokenizer(shard_set / "tokenizer")
        fingerprint = read_manifest(shard_set)["fingerprint"]
        for step in (1, 2):
            model = load_model(SMALL, tokenizer=tokenizer, seed=step).model
            tensors = {f"param/student.model.{n}": p.detach() for n, p in model.named_parameters()}
            about = {"step": step, "fingerprint": fingerprint}
            checkpoint.save(root, tensors, about, fence=fence, world=World(), keep_last=9)
        config = Config(
            str(run),
            steps=9,
            data=DataConfig(shards=str(shard_set)),
            model=ModelConfig(student=SMALL, teacher="/somewhere/private/bert-base-uncased"),
        )
        (run / "config.yaml").write_text(to_yaml(config))
        for step, loss in ((1, 5.0), (2, 4.0), (3, 4.5)):
            record = {"train/step": step, "val/loss_mlm": loss, "val/top1": step / 10}
            fsio.append_line(run / "metrics.jsonl", record)
        code = {"commit": "abc123", "diff": "", "fitb": "9.9", "packages": {"torch": "8.8"}}
        fsio.write_json(run / "provenance.json", [{"attempt": 1, **code}])
        if exported:
            model.save_pretrained(run / "export")
            tokenizer.save_pretrained(run / "export")
        return run

    return make


@pytest.fixture
def evaluated(tmp_path):
    """What `fitb evaluate --json` prints."""
    interval = {"value": 3.25, "low": 3.125, "high": 3.5}
    metrics = {"loss": interval, "span_em": dict.fromkeys(("value", "low", "high"))}
    about = {"num_rows": 12, "num_slots": 34, "fingerprint": "f" * 64, "seed": 5}
    mask = {"strategy": "span", "fraction": 0.25}
    result = {"split": "validation", "metrics": metrics, "mask": mask, **about}
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(result))
    return path


def facts(folder):
    """The rows of the card's tables of two columns."""
    lines = (folder / "README.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {pair[0]: pair[1] for pair in cells if len(pair) == 2}


def zeros(run, name):
    """As a power cut left it."""
    (run / "export" / name).write_bytes(bytes((run / "export" / name).stat().st_size))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("named", ["run", "run/export"])
def test_where_an_export_is_damaged_the_best_checkpoint_is_taken(
    make_run, tmp_path, caplog, name, named
):
    """The good checkpoint was out of reach, and the tokenizer of the export the error."""
    run = make_run(exported=True)
    zeros(run, name)
    source = run / "export" if named == "run/export" else run
    result = export(ExportConfig(str(source), str(tmp_path / "out")))
    assert result["step"] == 2
    assert any("export of" in m and "step-0000002" in m for m in caplog.messages)
    saved = load_file(next((run / "checkpoints" / "step-0000002").glob("*.safetensors")))
    name = "bert.embeddings.word_embeddings.weight"
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found[name], saved[f"param/student.model.{name}"])


def test_the_best_checkpoint_is_the_one_that_the_newest_names_and_without_any_that_is_said(
    make_run,
):
    run = make_run(exported=True)
    manifest = run / "checkpoints" / "step-0000002" / "manifest.json"
    for best, found in ((1, "step-0000001"), (2, "step-0000002"), (7, "step-0000002")):
        fsio.write_json(manifest, fsio.read_json(manifest) | {"best_step": best})
        assert best_checkpoint_of(run) == run / "checkpoints" / found
    zeros(run, "config.json")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(DataError, match=r"config\.json is damaged.* no checkpoint; start"):
        find(str(run))


def test_where_the_name_of_the_newest_checkpoint_is_damaged_the_last_one_is_it(make_run):
    run = make_run()
    for name in (b"", b"\0" * 9, b"step-0000009", b"../../export", b"\xff"):
        (run / "checkpoints" / "latest").write_bytes(name)
        assert checkpoint_of(run) == run / "checkpoints" / "step-0000002"


def test_a_damaged_record_hinders_no_export(make_run, tmp_path, caplog):
    run = make_run(exported=True)
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(bytes(20) + b"\n")
    (run / "provenance.json").write_bytes(b"")
    result = export(ExportConfig(str(run), str(tmp_path / "out")))
    assert result["step"] is None  # the damaged line may be that of the best step
    assert any("metrics.jsonl:4" in message for message in caplog.messages)


def test_what_another_process_made_meanwhile_is_not_replaced(make_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def card(*args):
        out.mkdir()
        (out / "theirs").write_text("theirs")
        return "card"

    monkeypatch.setattr(ours, "model_card", card)
    with pytest.raises(ConfigError, match="already exists"):
        export(ExportConfig(make_folder(), str(out)))
    assert [path.name for path in out.iterdir()] == ["theirs"]


def test_a_folder_is_written_with_the_weights_of_its_source(make_folder, tmp_path):
    out = tmp_path / "new" / "out"
    result = export(ExportConfig(make_folder(), str(out)))
    names = "README.md config.json model.safetensors tokenizer.json tokenizer_config.json"
    assert sorted(result["files"]) == names.split()
    before, after = (
        load_file(Path(folder) / "model.safetensors") for folder in (result["source"], out)
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert pipeline("fill-mask", model=str(out))("the [MASK] fox")


def test_a_run_gives_its_export_or_else_its_newest_checkpoint(make_run, tmp_path):
    run = make_run()
    newest, first = (run / "checkpoints" / f"step-000000{i}" for i in (2, 1))
    assert find(str(run)).model == str(newest) and find(str(run)).step == 2
    assert find(str(first)).step == 1
    for source, seed in ((run, 2), (first, 1)):
        out = tmp_path / f"out{seed}"
        export(ExportConfig(str(source), str(out)))
        tokenizer = load_tokenizer(out)
        model = load_model(SMALL, tokenizer=tokenizer, seed=seed).model
        words = load_file(out / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
        assert torch.equal(words, model.bert.embeddings.word_embeddings.weight)
    model.save_pretrained(run / "export")
    tokenizer.save_pretrained(run / "export")
    for source in (run, run / "export"):
        assert find(str(source)) == Origin(*[str(run / "export")] * 2, run, 2)


def test_a_run_without_a_model_or_without_a_tokenizer_is_refused(make_run, tmp_path):
    run = make_run()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("/set", "/gone"))
    with pytest.raises(DataError, match="tokenizer of .*/gone"):
        export(ExportConfig(str(run), str(tmp_path / "out")))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(DataError, match="neither an export nor a checkpoint"):
        find(str(run))


def test_the_card_says_where_a_model_is_from(make_run, shard_set, tmp_path):
    run = make_run()
    export(ExportConfig(str(run), str(tmp_path / "out")))
    found = facts(tmp_path / "out")
    manifest = read_manifest(shard_set)
    assert found["teacher"] == "bert-base-uncased"
    assert found["student began as"].startswith("random weights: 2 layers of 24")
    assert found["masks"] == "whole_word, 15% of tokens"
    assert found["step"] == "2 of 9"
    assert found["shards (fingerprint)"] == manifest["fingerprint"]
    assert found["documents"] == f"{manifest['statistics']['documents']:,}"
    assert found["tokens"] == f"{manifest['statistics']['tokens']:,}"
    assert (found["commit"], found["fitb"], found["torch"]) == ("abc123", "9.9", "8.8")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n")
    assert "| loss_mlm | 4.0000 |" in card and "| top1 | 0.2000 |" in card


def test_neither_tokenizer_nor_statistics_are_taken_from_other_shards(make_run, tmp_path):
    run = make_run(exported=True)
    path = run / "checkpoints" / "step-0000002" / "manifest.json"
    fsio.write_json(path, fsio.read_json(path) | {"fingerprint": "other"})
    export(ExportConfig(str(run), str(tmp_path / "out")))
    found = facts(tmp_path / "out")
    assert found["shards (fingerprint)"] == "other" and "documents" not in found
    shutil.rmtree(run / "export")
    with pytest.raises(DataError, match="other shards .* put these back"):
        export(ExportConfig(str(run), str(tmp_path / "new")))


@pytest.mark.parametrize("name", ["validation", "mine"])
def test_metrics_that_are_given_stand_in_the_card_with_their_intervals(
    make_run, evaluated, tmp_path, name
):
    if name == "mine":  # by set and model, as they are printed since
        flat = json.loads(evaluated.read_text())
        models = {"model": {"metrics": flat.pop("metrics")}, "teacher": {"metrics": {}}}
        kept = {key: flat.pop(key) for key in ("mask", "seed")}
        evaluated.write_text(json.dumps({**kept, "sets": {name: {**flat, "models": models}}}))
    export(ExportConfig(str(make_run()), str(tmp_path / "out"), metrics=str(evaluated)))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| loss | 3.2500 | 3.1250 to 3.5000 |" in card
    assert f"12 rows and 34 masked positions of {name}" in card and "masks span at 25%" in card
    assert "loss_mlm" not in card and "span_em" not in card


def test_metrics_of_another_kind_are_refused(make_folder, tmp_path):
    bad = tmp_path / "bad.json"
    config = ExportConfig(make_folder(), str(tmp_path / "out"), metrics=str(bad))
    for content in ("no JSON", "[]", "{}", '{"sets": {}}', '{"metrics": 3}'):
        bad.write_text(content)
        with pytest.raises(DataError, match=r"bad\.json .*`fitb evaluate --json`"):
            export(config)
        assert not (tmp_path / "out").exists()


def test_no_file_names_a_path_of_this_machine(make_run, tmp_path):
    export(ExportConfig(str(make_run(exported=True)), str(tmp_path / "out"), onnx=True))
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        for private in (str(tmp_path), str(Path.home()), "/somewhere", str(Path(ours.__file__))):
            assert private.encode() not in content, path


@pytest.mark.parametrize("when", ["model_card", "_with_onnx"])
def test_an_export_that_ends_early_leaves_nothing(make_folder, tmp_path, monkeypatch, when):
    source = make_folder()
    monkeypatch.setattr(ours, when, Mock(side_effect=KeyboardInterrupt))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        export(ExportConfig(source, str(tmp_path / "out"), onnx=True))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_without_trained_head_or_onnx_without_its_extra_is_refused(
    make_folder, tmp_path, monkeypatch
):
    out = str(tmp_path / "out")
    with pytest.raises(ContractError, match="lacks a trained MLM head"):
        export(ExportConfig(make_folder(kind=BertModel), out))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemFault, match=r"pip install 'fitb\[onnx\]'"):
        export(ExportConfig("nothing is read", out, onnx=True))
    assert not Path(out).exists()


def test_onnx_files_lie_beside_the_tokenizer_and_answer_as_the_model(make_folder, tmp_path):
    result = export(ExportConfig(make_folder(), str(tmp_path / "out"), int8=True))
    assert {"model.onnx", "model-int8.onnx"} <= result["files"].keys()
    assert 0 <= result["onnx_largest_difference"] <= 1e-4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`model.onnx`" in card and "What 8-bit products cost was not measured" in card


def test_the_cost_of_int8_is_measured_on_shards_and_stands_in_the_card(
    make_run, shard_set, tmp_path
):
    settings = {"int8": True, "shards": str(shard_set), "rows": 20}
    result = export(ExportConfig(str(make_run()), str(tmp_path / "out"), **settings))
    costs = {each["metric"]: each for each in result["int8_cost"]}
    assert set(costs) == {"loss", "top1", "top5"}
    loss = costs["loss"]
    assert loss["difference"] == pytest.approx(loss["int8"] - loss["fp32"], abs=1e-9)
    assert loss["low"] <= loss["difference"] <= loss["high"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| loss | {loss['fp32']:.4f} | {loss['int8']:.4f} |" in card
    assert "On 20 validation rows" in card


def test_shards_of_another_tokenizer_are_refused_and_so_are_shards_without_int8(
    make_folder, shard_set, tmp_path
):
    out = str(tmp_path / "out")
    with pytest.raises(ConfigError, match="add --int8"):
        ExportConfig("model", out, shards=str(shard_set))
    config = ExportConfig(make_folder(), out, int8=True, shards=str(shard_set))
    with pytest.raises(DataError, match="prepared with another tokenizer"):
        export(config)
    assert not Path(out).exists()


def test_the_command_prints_what_it_wrote_and_replaces_nothing(make_folder, tmp_path, capsys):
    command = ["export", make_folder(), "--out", str(tmp_path / "a")]
    assert main(command) == 0
    assert "model.safetensors" in capsys.readouterr().out
    (tmp_path / "a" / "mine.txt").write_text("mine")
    assert main(command) == 2
    assert (tmp_path / "a" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["run", "checkpoint", "folder"])
def test_an_export_offers_what_was_trained_and_no_more(make_run, make_folder, tmp_path, kind):
    """Card and tokenizer said 512 where rows had 32 tokens."""
    if kind == "folder":
        source, trained, positions = make_folder(trained_length=24), 24, 64
    else:
        run = make_run(exported=kind == "run")
        source = str(run) if kind == "run" else str(run / "checkpoints" / "step-0000001")
        trained, positions = 32, 512
    out = tmp_path / "out"
    export(ExportConfig(source, str(out), onnx=True))
    config = json.loads((out / "config.json").read_text())
    assert (config["trained_length"], config["max_position_embeddings"]) == (trained, positions)
    assert AutoTokenizer.from_pretrained(out).model_max_length == trained
    card = (out / "README.md").read_text()
    assert f"| tokens of a text at most | {trained} |" in card
    assert (
        f"| positions | {positions}, of which those from {trained} on were never trained |" in card
    )
    assert f"L at most {trained}," in card and f"trained to read {trained} tokens at once" in card
    assert {load_scorer(str(out), name).max_length for name in ("torch", "onnx")} == {trained}
