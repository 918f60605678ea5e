"""Small real things that tests share: shards, a teacher, flags of a quick run, a small disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.pop("WANDB_API_KEY", None)  # no test may reach a real account

HEADS = 4
STUDENT = (
    '{"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64,'
    f' "num_attention_heads": {HEADS}}}'
)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of half a megabyte of docstrings: some 2,000 rows of 64 tokens in small shards."""
    from fitb.prepare.config import PrepareConfig
    from fitb.prepare.run import prepare

    folder = tmp_path_factory.mktemp("corpus") / "shards"
    prepare(
        PrepareConfig(
            out=str(folder),
            source="docstrings",
            max_mb=0.5,
            vocab_size=600,
            length=64,
            shard_mb=0.04,
            workers=1,
            validation_fraction=0.1,
        )
    )
    return folder


@pytest.fixture(scope="session")
def teacher(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a BERT of 4 layers and its MLM head; its weights are random."""
    from fitb.config import Geometry
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.model.load import load_model

    folder = tmp_path_factory.mktemp("models") / "teacher"
    tokenizer = load_tokenizer(shards / "tokenizer")
    loaded = load_model(Geometry(4, 64, 128, HEADS), tokenizer=tokenizer, length=64, seed=7)
    loaded.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quick_flags(shards: Path, teacher: Path) -> list[str]:
    """Flags of a run that distils 24 steps in a few seconds on a CPU; --run_dir is the caller's."""
    flags = {
        "steps": 24,
        "global_batch": 16,
        "micro_batch": 4,
        "precision": "fp32",
        "data.shards": shards,
        "model.teacher": teacher,
        "model.student": STUDENT,
        "optim.lr": 1e-3,
        "optim.warmup_steps": 5,
        "eval.every_steps": 8,
        "eval.rows": 64,
        "checkpoint.every_steps": 10,
        "track.every_steps": 1,
        "track.wandb": "disabled",
    }
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small filesystem needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
