"""A small corpus, its tokenizer and its shard set, each made once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitb.corpus.build import PrepareConfig, prepare
from fitb.corpus.tokenizer import train_tokenizer

WORDS = """
    the reader of a shard asks for rows and gets them in order when nothing is broken but isn't
    tokenization unbelievable internationalization caf\u00e9 na\u00efve \u4e2d\u6587 x_y 3.14
    [MASK] [SEP] http://a.b/c state-of-the-art distillation teacher student hidden attention
    """
SYLLABLES = "ba de ki lo mu ra se ti vo nu pel dor gan fis wex"


def random_texts(number: int, seed: int) -> list[str]:
    """Return different texts of 1 to 60 words, one in ten of them made up."""
    draw = random.Random(seed)
    words, syllables = WORDS.split(), SYLLABLES.split()
    words += ["".join(draw.choices(syllables, k=draw.randint(2, 6))) for _ in range(100)]
    weights = [9.0 / (len(words) - 100)] * (len(words) - 100) + [0.01] * 100
    return [
        f"text {place} " + " ".join(draw.choices(words, weights, k=draw.randint(1, 60)))
        for place in range(number)
    ]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return random_texts(400, seed=1)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(texts, 300, folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_config(text_file: Path) -> Callable[..., PrepareConfig]:
    """Small settings for a folder, with changes."""

    def make(out: Path, **changes: Any) -> PrepareConfig:
        settings = {
            "source": "text",
            "files": [str(text_file)],
            "vocab_size": 300,
            "length": 32,
            "validation_fraction": 0.1,
            "shard_rows": 100,
        }
        return PrepareConfig(out=str(out), **{**settings, **changes})

    return make


@pytest.fixture(scope="session")
def shard_set(
    tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., PrepareConfig]
) -> Path:
    """A set of several small shards; tests that damage it copy it first."""
    out = tmp_path_factory.mktemp("sets") / "set"
    prepare(make_config(out))
    return out
