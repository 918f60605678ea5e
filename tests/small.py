"""Small real things that tests share: shards, a teacher, the flags of a quick run."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fitb.config import Geometry

HEADS = 4
TEACHER = Geometry(4, 64, 128, HEADS)
STUDENT = (
    '{"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64,'
    f' "num_attention_heads": {HEADS}}}'
)


@contextlib.contextmanager
def mounted(folder: Path, *words: str | Path) -> Iterator[Path]:
    """A folder with another filesystem on it; where this user may not mount, a test is skipped."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *words, folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a filesystem needs root: {done.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def make_shards(folder: Path) -> Path:
    """Half a megabyte of docstrings: some 2,000 rows of 64 tokens in small shards."""
    from fitb.corpus.prepare import prepare
    from fitb.corpus.prepare_config import PrepareConfig

    prepare(
        PrepareConfig(
            out=str(folder / "shards"),
            source="docstrings",
            max_mb=0.5,
            vocab_size=600,
            length=64,
            shard_mb=0.04,
            workers=1,
            validation_fraction=0.1,
        )
    )
    return folder / "shards"


def make_teacher(folder: Path, shards: Path, sizes: Geometry = TEACHER, length: int = 64) -> Path:
    """A Hugging Face folder with a BERT and its MLM head; its weights are random."""
    from fitb.corpus.tokenizer import load_tokenizer
    from fitb.model.load import load_model

    tokenizer = load_tokenizer(shards / "tokenizer")
    loaded = load_model(sizes, tokenizer=tokenizer, length=length, seed=7)
    loaded.model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    return folder / "teacher"


def quick(
    shards: Path,
    teacher: Path,
    steps: int = 24,
    checkpoint_every: int = 10,
    eval_every: int = 8,
) -> list[str]:
    """Flags of a run that distils 24 steps in a few seconds on a CPU; --run_dir is the caller's."""
    settings = {
        "steps": steps,
        "global_batch": 16,
        "micro_batch": 4,
        "precision": "fp32",
        "data.shards": shards,
        "model.teacher": teacher,
        "model.student": STUDENT,
        "optim.lr": 1e-3,
        "optim.warmup_steps": 5,
        "eval.every_steps": eval_every,
        "eval.rows": 64,
        "checkpoint.every_steps": checkpoint_every,
        "track.every_steps": 1,
        "track.wandb": "disabled",
    }
    return flags_of(settings)


def flags_of(settings: dict[str, object]) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]
