"""A run's export says what it was trained at."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import job
import torch
from transformers import AutoTokenizer, BertForMaskedLM

AS_WIDE = (
    '{"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}'
)


def positions(folder: Path) -> torch.Tensor:
    model = BertForMaskedLM.from_pretrained(folder)
    return model.bert.embeddings.position_embeddings.weight.detach()


def test_a_run_exports_the_length_of_its_rows_for_all_who_may_read(
    quick_flags: list[str], teacher: Path, tmp_path: Path
) -> None:
    """Of 512 positions 64 were trained; config, tokenizer and card said 512, the weights 0600."""
    flags = [*quick_flags, "--steps", "2", "--model.student", AS_WIDE]
    run, before = tmp_path / "run", os.umask(0o027)
    try:
        done = job.fitb("train", *flags, "--model.positions", "teacher", "--run_dir", str(run))
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    export = run / "export"
    config = json.loads((export / "config.json").read_text())
    assert (config["trained_length"], config["max_position_embeddings"]) == (64, 512)
    assert AutoTokenizer.from_pretrained(export).model_max_length == 64
    card = (export / "README.md").read_text()
    assert "| tokens of a text at most | 64 |" in card
    manifest = json.loads((job.newest(run) / "manifest.json").read_text())
    assert manifest["trained_length"] == 64
    assert {stat.S_IMODE(path.stat().st_mode) for path in export.iterdir()} == {0o640}
    ours, theirs = positions(export), positions(teacher)
    alike = torch.nn.functional.cosine_similarity(ours, theirs)
    assert alike.min() > 0.9 and alike[64:].min() > 0.999  # it began there; two steps moved it
    assert not torch.equal(ours[:64], theirs[:64])
