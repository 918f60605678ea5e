"""What a model was trained to read is stated, kept, and found again in what states nothing."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BertForMaskedLM

from fitb.base.errors import ConfigError, DataError
from fitb.base.fsio import read_json, write_json
from fitb.config import Config, DataConfig, Geometry, ModelConfig
from fitb.config.yaml import to_yaml
from fitb.infer.scorer import load_scorer
from fitb.model.load import load_model
from fitb.model.positions import known_length, settle, take_positions, trained_length
from fitb.shards.manifest import read_manifest

SMALL = Geometry(num_hidden_layers=1, hidden_size=24, intermediate_size=32, num_attention_heads=3)
CARD = "# old\n\nMade by fitb, which distils.\n\n| | |\n|---|---|\n"


@pytest.fixture
def old_run(make_folder, shard_set, tmp_path):
    """A run of before lengths were stated: its export, its configuration, a checkpoint's name."""

    def make(student=SMALL, rows=None):
        run = tmp_path / "run"
        shutil.move(make_folder("exported", max_position_embeddings=512), run / "export")
        settings = Config(
            str(run), model=ModelConfig(student=student), data=DataConfig(shards=str(shard_set))
        )
        (run / "config.yaml").write_text(to_yaml(settings))
        row = "" if rows is None else f"| tokens in a row | {rows} |\n"
        (run / "export" / "README.md").write_text(f"{CARD}{row}")
        folder = run / "checkpoints" / "step-0000002"
        folder.mkdir(parents=True)
        (run / "checkpoints" / "latest").write_text(folder.name)
        write_json(
            folder / "manifest.json", {"fingerprint": read_manifest(shard_set)["fingerprint"]}
        )
        return run

    return make


def loaded_length(source, tokenizer):
    return trained_length(load_model(str(source), tokenizer=tokenizer).model.config)


@pytest.mark.parametrize(("length", "positions"), [(20, 512), (512, 512), (700, 700)])
def test_a_student_of_given_sizes_is_trained_at_the_row_length(tokenizer, length, positions):
    config = load_model(SMALL, tokenizer=tokenizer, length=length).model.config
    assert trained_length(config) == config.trained_length == length
    assert config.max_position_embeddings == positions
    assert (config.vocab_size, config.pad_token_id) == (len(tokenizer), tokenizer.pad_token_id)


def test_the_statement_outlives_being_loaded_and_saved_by_transformers(tokenizer, tmp_path):
    load_model(SMALL, tokenizer=tokenizer, length=20).model.save_pretrained(tmp_path / "first")
    BertForMaskedLM.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert json.loads((tmp_path / "second" / "config.json").read_text())["trained_length"] == 20
    assert loaded_length(tmp_path / "second", tokenizer) == 20
    assert AutoConfig.from_pretrained(tmp_path / "second").max_position_embeddings == 512


@pytest.mark.parametrize("stated", [0, 2, 65, "32", True, 3.5, [32]])
def test_a_statement_that_cannot_be_is_refused(make_folder, tokenizer, stated):
    folder = make_folder(trained_length=stated)
    with pytest.raises(DataError, match=r"trained_length=.*from 3 to .*=64.*remove the key"):
        load_model(folder, tokenizer=tokenizer)


def test_an_export_of_before_is_held_to_the_rows_that_its_card_names(
    old_run, tokenizer, tmp_path, caplog
):
    """It was believed for the 512 positions that it has, of which 48 had been trained."""
    moved = tmp_path / "moved"
    shutil.move(old_run(rows=48) / "export", moved)
    assert known_length(moved) == loaded_length(moved, tokenizer) == 48
    assert load_scorer(str(moved)).max_length == 48
    assert not caplog.records


def test_a_run_of_before_is_held_to_the_rows_of_its_shards(old_run, tokenizer, caplog):
    run = old_run()
    checkpoint = run / "checkpoints" / "step-0000002"
    for source in (run, checkpoint, run / "export"):
        assert known_length(source) == 32
    assert loaded_length(run / "export", tokenizer) == 32
    assert not caplog.records
    manifest = read_json(checkpoint / "manifest.json")
    write_json(checkpoint / "manifest.json", {**manifest, "trained_length": 24})
    assert known_length(run) == 24
    # Other shards under the old name tell nothing.
    write_json(checkpoint / "manifest.json", {"fingerprint": "other"})
    assert known_length(run / "export") is None
    with caplog.at_level(logging.WARNING):
        assert loaded_length(run / "export", tokenizer) == 512
    assert "max_position_embeddings=512" in caplog.text and '"trained_length": N' in caplog.text


def test_what_the_start_of_a_student_could_is_kept(old_run, make_folder):
    """BERT read 512 tokens before it was fine-tuned on rows of 32."""
    assert known_length(old_run(make_folder("bert", max_position_embeddings=80)) / "export") == 80


@pytest.mark.parametrize(
    ("card", "level"),
    [
        (CARD, "WARNING"),  # fitb's own, and it does not say
        (None, "INFO"),
        ("# BERT base\n\n| tokens in a row | 3 |\n", "DEBUG"),  # others answer for what they say
    ],
)
def test_a_model_that_nothing_is_known_of_is_taken_at_its_word_and_that_is_said(
    make_folder, tokenizer, caplog, card, level
):
    folder = make_folder()
    if card is not None:
        (Path(folder) / "README.md").write_text(card)
    with caplog.at_level(logging.DEBUG, "fitb"):
        assert loaded_length(folder, tokenizer) == 64
    (record,) = [record for record in caplog.records if record.name.startswith("fitb")]
    assert record.levelname == level
    assert "trained length of model" in record.message and "=64" in record.message


def test_rows_longer_than_a_model_was_trained_at_are_no_contract(make_folder, tokenizer, failures):
    model = load_model(make_folder(trained_length=24), tokenizer=tokenizer)
    (failure,) = failures(model)
    assert "rows of 24 tokens, these have 32" in failure
    assert not failures(model, in_windows=True)


def test_a_student_may_begin_with_the_teachers_positions(make_folder, tokenizer):
    student = load_model(SMALL, tokenizer=tokenizer, length=20).model
    teacher = load_model(make_folder(), tokenizer=tokenizer).model
    ours, theirs = (m.bert.embeddings.position_embeddings.weight for m in (student, teacher))
    before = ours.detach().clone()
    take_positions(student, teacher)
    assert torch.equal(ours[:64], theirs) and torch.equal(ours[64:], before[64:])
    assert ours.requires_grad and trained_length(student.config) == 20


def test_positions_of_another_width_are_refused_with_what_to_do(make_folder, tokenizer):
    student = load_model(SMALL, tokenizer=tokenizer).model
    wide = load_model(make_folder(hidden_size=48), tokenizer=tokenizer).model
    with pytest.raises(ConfigError, match=r"24 wide.* 48; .*model\.student\.hidden_size=48"):
        take_positions(student, wide)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": None}, "expected a teacher"),
        ({"student": "runs/a"}, "the student as a geometry"),
    ],
)
def test_positions_that_no_student_can_take_are_refused_at_once(changes, said):
    with pytest.raises(ConfigError, match=rf"model\.positions=teacher.*{said}.*random"):
        ModelConfig(**{"teacher": "bert", "positions": "teacher", **changes})


def test_a_statement_in_a_start_does_not_bind_the_checkpoint(old_run, make_folder):
    run = old_run(make_folder("start", trained_length=20))
    config = AutoConfig.from_pretrained(run / "export")
    config.trained_length = 20
    settle(config, run)
    assert config.trained_length == 32
