"""A small shard set, and models of random weights for it."""

import numpy as np
import pytest
import torch
from evaluating import LENGTH, MemoryShards, write_shards

from fitb.config import Geometry
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.masking import Vocabulary
from fitb.model.load import load_model

SMALL = Geometry(num_hidden_layers=1, hidden_size=12, intermediate_size=16)


@pytest.fixture
def vocabulary(tokenizer):
    return Vocabulary.of(tokenizer)


@pytest.fixture
def memory(tokenizer):
    """Eleven rows: two documents in row 4, row 7 begins inside a word, some end in padding."""
    draw = np.random.default_rng(3)
    ids = draw.integers(5, len(tokenizer), (11, LENGTH))
    starts = draw.random((11, LENGTH)) < 0.5
    starts[:, 1], starts[4, 10], starts[7, 1:3] = True, True, False
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids[4, 9] = tokenizer.sep_token_id
    for row, end in ((2, 40), (5, 12), (8, 17), (10, 6)):
        ids[row, end - 1], ids[row, end:] = tokenizer.sep_token_id, tokenizer.pad_token_id
    return MemoryShards(ids, starts & (ids >= 5))


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
