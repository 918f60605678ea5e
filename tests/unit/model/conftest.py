"""The manifest of shards that were made with the small tokenizer, and what the contract says."""

import pytest

from fitb.base.errors import ContractError
from fitb.corpus.tokenizer import describe_tokenizer
from fitb.model.contract import check_contract


@pytest.fixture
def manifest(tokenizer_folder):
    return {"length": 32, "tokenizer": describe_tokenizer(tokenizer_folder)}


@pytest.fixture
def failures(tokenizer, manifest):
    """What the contract says, about a student and these shards where nothing else is named."""

    def failures(student, **settings):
        settings = {"tokenizer": tokenizer, "manifest": manifest, "student": student, **settings}
        try:
            check_contract(**settings)
        except ContractError as error:
            return list(error.failures)
        return []

    return failures
