"""What several rooms need: a small English tokenizer and tiny models; no network."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from fitb.corpus.tokenizer import load_tokenizer, train_tokenizer

ENGLISH = [
    "the quick brown fox jumps over the lazy dog while the others are watching it",
    "a reader opens a book and reads the first page of the story again and again",
    "walking home she was thinking of the capital of france and of its rivers",
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


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
            kind(tiny_config(len(tokenizer), **changes)).save_pretrained(folder)
        if with_tokenizer:
            tokenizer.save_pretrained(folder)
        return str(folder)

    return make
