"""Rows longer than a model was trained at are evaluated in windows, slot by slot as by hand."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from evaluating import LENGTH, masked_rows, sharp_model

from fitb.data.batch import Batch
from fitb.data.masking import IGNORE_INDEX
from fitb.evaluation import folder as results
from fitb.evaluation.compare import compare
from fitb.evaluation.evaluate import evaluate
from fitb.evaluation.evaluate_config import CompareConfig, EvaluateConfig
from fitb.evaluation.printed import evaluation_text
from fitb.evaluation.score import Bert, Onnx, cut_rows, score
from fitb.infer.onnx import export_onnx, load_onnx

MOST = 16


@pytest.fixture
def model(tokenizer):
    model = sharp_model(tokenizer)
    model.config.trained_length = MOST
    return model


@pytest.fixture
def batch(memory, vocabulary):
    return Batch.of(masked_rows(memory, range(9), vocabulary))


def test_teacher_and_student_each_have_their_own_windows(model, batch, tokenizer):
    models = [model, sharp_model(tokenizer)]
    with torch.no_grad():
        both = score(
            {"student": Bert(models[0]), "teacher": Bert(models[1])}, batch, teacher="teacher"
        )
        alone = [score({"": Bert(model)}, batch)[""] for model in models]
    for name, one in zip(("student", "teacher"), alone, strict=True):
        np.testing.assert_array_equal(both[name].rank, one.rank)
        np.testing.assert_allclose(both[name].loss, one.loss, rtol=1e-6)
    assert both["student"].kl.max() > 0 and not np.allclose(alone[0].loss, alone[1].loss)


def test_a_batch_that_fits_is_the_very_same_and_rows_without_a_slot_give_nothing(model, batch):
    assert cut_rows(batch, LENGTH) is batch
    batch.labels.fill_(IGNORE_INDEX)
    with torch.no_grad():
        assert len(Bert(model).hidden(batch)) == 0


def test_onnxruntime_reads_the_same_windows(model, batch, tokenizer, tmp_path):
    pytest.importorskip("onnxruntime")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    export_onnx(model, tokenizer, tmp_path)
    with torch.no_grad():
        onnx, torchs = Onnx(load_onnx(str(tmp_path))), Bert(model)
        ours, theirs = (score({"": one}, batch)[""] for one in (onnx, torchs))
    np.testing.assert_allclose(ours.loss, theirs.loss, atol=1e-4)


@pytest.fixture
def held(make_model, tmp_path):
    """A model of 512 positions for rows of 32, which says that it was trained on some tokens."""

    def make(most):
        path = tmp_path / f"of-{most}"
        shutil.copytree(make_model(1), path, dirs_exist_ok=True)
        config = json.loads((path / "config.json").read_text())
        assert config["trained_length"] == 32
        (path / "config.json").write_text(json.dumps({**config, "trained_length": most}))
        return str(path)

    return make


def test_an_evaluation_says_in_what_windows_rows_were_read(general, held):
    settings = {"shards": general, "rows": 8, "resamples": 20}
    of_both = compare(CompareConfig(models=[held(16), held(32)], **settings))
    assert [of_both["models"][role]["trained_length"] for role in "AB"] == [16, 32]
    assert of_both["sets"]["validation"]["differences"]["loss"]["value"] != 0
    result = evaluate(EvaluateConfig(model=held(16), teacher=held(32), **settings))
    assert result["sets"]["validation"]["length"] == 32
    lengths = {role: each["trained_length"] for role, each in result["models"].items()}
    assert lengths == {"model": 16, "untrained": 16, "teacher": 32}
    assert math.isfinite(result["metrics"]["loss"]["value"])
    model, *others = evaluation_text(result).splitlines()[:3]
    assert model.endswith("parameters, reads windows of 16 tokens")
    assert others[-1].endswith("parameters")
    for each in (*result["sets"].values(), *result["models"].values()):  # as it was written before
        each.pop("length", each.pop("trained_length", None))
    assert "windows" not in evaluation_text(result)


def test_a_result_of_before_stands_only_where_rows_were_not_cut(general, held, monkeypatch):
    def name(model):
        config = EvaluateConfig(models=[model], out="out", shards=general)
        return results._names(config, [model])[model]

    models = [held(16), held(32)]
    found = [name(model) for model in models]
    monkeypatch.setattr(results, "known_length", lambda source: None)
    before = [name(model) for model in models]
    assert found[1] == before[1] and found[0] != before[0]
