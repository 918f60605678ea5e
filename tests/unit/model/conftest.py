"""The manifest of shards that were made with the small tokenizer."""

import pytest

from fitb.corpus.tokenizer import describe_tokenizer


@pytest.fixture
def manifest(tokenizer_folder):
    return {"length": 32, "tokenizer": describe_tokenizer(tokenizer_folder)}
