"""Tokens added to a vocabulary, from the shards through a run that is stopped to its export."""

from __future__ import annotations

import json
import shutil
import signal

import job
import pytest
import torch

TOKENS = ["DataFrame", "PyTorch", "tokenizers", "scikit-learn"]
EMBEDDINGS = "param/student.model.bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def extended_shards(shards, tmp_path_factory):
    """The same text once more, with added tokens."""
    from fitb.corpus.tokenizer import add_tokens

    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(shards / "tokenizer", folder / "tokenizer")
    assert len(add_tokens(folder / "tokenizer", TOKENS)) == len(TOKENS)
    done = job.fitb(
        "prepare", "--out", str(folder / "shards"), "--tokenizer", str(folder / "tokenizer"),
        "--max_mb", "0.5", "--length", "64", "--validation_fraction", "0.1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "shards"


@pytest.fixture(scope="module")
def student(shards, tmp_path_factory):
    """A student's folder whose tokenizer knows nothing of the added tokens."""
    from fitb.config import Geometry
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.model.load import load_model

    folder = tmp_path_factory.mktemp("student")
    tokenizer = load_tokenizer(shards / "tokenizer")
    loaded = load_model(Geometry(2, 32, 64, 4), tokenizer=tokenizer, length=64, seed=8)
    loaded.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flags(quick_flags, extended_shards, student):
    """Distil from a teacher's folder into a student's, neither of which has the added tokens."""
    return [*quick_flags, "--data.shards", str(extended_shards), "--model.student", str(student)]


@pytest.fixture(scope="module")
def straight(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert job.run(flags, folder) == 0
    return folder


def manifest(shards):
    return json.loads((shards / "manifest.json").read_text())["tokenizer"]


def test_a_stopped_run_with_added_tokens_resumes_bitwise(straight, flags, tmp_path):
    run = tmp_path / "run"
    assert job.run_and_signal(flags, run, signal.SIGUSR1, at_step=6, rank=0) == 85
    assert job.run(flags, run) == 0
    assert job.differing(straight, run) == []
    assert job.unlike(straight, run) == []


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_norms_of_added_and_other_embeddings_are_logged_under_every_stage(
    straight, flags, extended_shards, tmp_path, stage
):
    run = tmp_path / "run"
    assert job.run([*flags, "--ds_config", stage, "--steps", "4"], run) == 0
    norms, records = job.state(run)[EMBEDDINGS].double().norm(dim=1), job.metrics(run)
    added = torch.zeros(len(norms), dtype=torch.bool)
    added[[entry["id"] for entry in manifest(extended_shards)["added"]]] = True
    last = records[-1]
    assert last["embeddings/added_norm"] == pytest.approx(float(norms[added].mean()), rel=1e-5)
    assert last["embeddings/norm"] == pytest.approx(float(norms[~added].mean()), rel=1e-5)
    assert all("embeddings/added_norm" in record for record in records)


def test_the_export_has_the_new_vocabulary_and_is_a_student_that_is_not_extended_again(
    straight, flags, extended_shards, tmp_path
):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    entry = manifest(extended_shards)
    export = straight / "export"
    model = AutoModelForMaskedLM.from_pretrained(export)
    tokenizer = AutoTokenizer.from_pretrained(export)
    size = model.config.vocab_size
    assert size == len(tokenizer) == entry["vocab_size"]
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    ids = tokenizer("A pytorch dataframe", add_special_tokens=False).input_ids
    by_token = {added["token"]: added["id"] for added in entry["added"]}
    assert ids[-2:] == [by_token["pytorch"], by_token["dataframe"]]

    again = tmp_path / "again"
    finetune = ["--model.teacher", "null", "--model.student", str(export), "--steps", "2"]
    for term in ("embedding", "hidden", "attention", "logits"):
        finetune += [f"--objective.{term}", "0"]
    assert job.run([*flags, *finetune], again, 1) == 0
    assert job.state(again)[EMBEDDINGS].shape[0] == size
