"""What several rooms need: a small tokenizer, models, a corpus and its shard set; no network."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from fitb.config import Config, TrackConfig
from fitb.corpus.prepare import prepare
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.tokenizer import load_tokenizer, train_tokenizer

ENGLISH = [
    "the quick brown fox jumps over the lazy dog while the others are watching it",
    "a reader opens a book and reads the first page of the story again and again",
    "walking home she was thinking of the capital of france and of its rivers",
]

WORDS = """
    the reader of a shard asks for rows and gets them in order when nothing is broken but isn't
    tokenization unbelievable internationalization caf\u00e9 na\u00efve \u4e2d\u6587 x_y 3.14
    [MASK] [SEP] http://a.b/c state-of-the-art distillation teacher student hidden attention
    """
SYLLABLES = "ba de ki lo mu ra se ti vo nu pel dor gan fis wex"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("NO_PROXY", "no_proxy"):  # servers of tests are on this machine
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(ENGLISH * 5, 300, folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


def tiny_config(vocab_size, **changes):
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "initializer_range": 0.5,
    }
    return BertConfig(vocab_size=vocab_size, **(sizes | changes))


@pytest.fixture
def make_folder(tmp_path, tokenizer):
    """Save a tiny model and its tokenizer as a Hugging Face folder; changes go to its config."""

    def make(name="model", kind=BertForMaskedLM, with_tokenizer=True, **changes):
        folder = tmp_path / name
        with torch.random.fork_rng():
            torch.manual_seed(1)
            kind(tiny_config(**{"vocab_size": len(tokenizer)} | changes)).save_pretrained(folder)
        if with_tokenizer:
            tokenizer.save_pretrained(folder)
        return str(folder)

    return make


def random_texts(number, seed):
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
def texts():
    return random_texts(400, seed=1)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_config(text_file):
    """Small settings for a folder, with changes."""

    def make(out, **changes):
        settings = {
            "source": "text",
            "files": [str(text_file)],
            "vocab_size": 300,
            "length": 32,
            "validation_fraction": 0.1,
            "shard_mb": 0.02,
            "workers": 1,
        }
        return PrepareConfig(out=str(out), **{**settings, **changes})

    return make


@pytest.fixture(scope="session")
def shard_set(tmp_path_factory, make_config):
    """A set of several small shards; tests that damage it copy it first."""
    out = tmp_path_factory.mktemp("sets") / "set"
    prepare(make_config(out))
    return out


@pytest.fixture
def run_config(tmp_path):
    """A run's configuration without the parts that need a model."""

    def make(**changes):
        settings = {"run_dir": str(tmp_path / "run"), "track": TrackConfig(wandb="disabled")}
        return Config(**(settings | changes))

    return make
