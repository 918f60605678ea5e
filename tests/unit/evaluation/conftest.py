"""A small shard set, and models of random weights for it."""

import pytest
import torch
from evaluating import write_shards

from fitb.config import Geometry
from fitb.corpus.tokenizer import load_tokenizer
from fitb.model.load import load_model

SMALL = Geometry(num_hidden_layers=1, hidden_size=12, intermediate_size=16)


@pytest.fixture(scope="session")
def general(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("sets") / "general", 0)


@pytest.fixture(scope="session")
def make_model(general, tmp_path_factory):
    """A folder with a model of random weights, sharp enough to be right now and then."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = load_tokenizer(f"{general}/tokenizer")

    def make(seed):
        path = folder / str(seed)
        if not path.exists():
            model = load_model(SMALL, tokenizer=tokenizer, length=32, seed=seed).model
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(6)
            model.save_pretrained(path)
            tokenizer.save_pretrained(path)
        return str(path)

    return make
