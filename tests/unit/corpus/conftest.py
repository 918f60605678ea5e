"""The tokenizer of the small corpus."""

import pytest

from fitb.corpus.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(texts, 300, folder)
    return folder
