"""The tokenizer of the small corpus, and sets with other settings."""

import pytest

from fitb.corpus.prepare import prepare
from fitb.corpus.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(texts, 300, folder)
    return folder


@pytest.fixture
def config(make_config, tmp_path):
    return make_config(tmp_path / "out")


@pytest.fixture
def made(make_config, tmp_path):
    """Prepare with changed settings, and return the folder."""

    def make(name="set", **changes):
        return prepare(make_config(tmp_path / name, **changes)).parent

    return make
