"""Two different models in one server, through onnxruntime: each answers with its own weights."""

from __future__ import annotations

import json

import pytest
import torch
from serving import assert_alike, serving
from transformers import BertForMaskedLM

from fitb.corpus.tokenizer import load_tokenizer
from fitb.infer.fill import fill
from fitb.infer.onnx import export_onnx, load_onnx
from fitb.infer.request import FillRequest
from fitb.serve.schema import encoded, response

pytest.importorskip("onnxruntime")
LONG = "value of " * 60 + "a [MASK] " + "of values " * 60  # the models were trained at 64 tokens
TEXTS = ("Returns a [MASK] of ___ strings.", "The [SPAN] is None.", LONG)


def exported(folder, teacher, tokenizer, seed):
    """A folder with model.onnx and the weights of the teacher, shaken."""
    model = BertForMaskedLM.from_pretrained(teacher).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export_onnx(model, tokenizer, folder)
    return str(folder)


def test_student_and_teacher_answer_side_by_side_as_their_files_do(teacher, tmp_path):
    tokenizer = load_tokenizer(teacher)
    folders = {
        name: exported(tmp_path / name, teacher, tokenizer, seed)
        for seed, name in enumerate(("student", "teacher"))
    }
    requests = [FillRequest(text) for text in TEXTS]
    expected = {
        name: json.loads(response(name, list(map(encoded, fill(load_onnx(folder), requests)))))
        for name, folder in folders.items()
    }
    flags = (folders["student"], "--teacher", folders["teacher"], "--backend", "onnx")
    with serving(tmp_path, *flags) as served:
        found = {name: served.fill(*TEXTS, model=name) for name in folders}
        by_default = served.fill(*TEXTS)
    best = {name: answers[0]["fillings"][0]["sentence"] for name, answers in found.items()}
    assert best["student"] != best["teacher"]
    assert by_default == found["student"]
    for name, answers in found.items():
        assert_alike(answers, expected[name]["texts"])
        for ours, theirs in zip(answers, expected[name]["texts"], strict=True):
            assert [one["sentence"] for one in ours["fillings"]] == [
                one["sentence"] for one in theirs["fillings"]
            ]
