"""Tiny vocabularies and models for them, and a scorer that remembers what it was asked."""

import pytest
import torch
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from fitb.corpus.tokenizer import _bert_tokenizer
from fitb.infer.pytorch import TorchScorer
from fitb.shards.tokenizer import SPECIAL_TOKENS
from tests.unit.conftest import tiny_config

TINY = ("a", "b", "c", "##d", "##e", ".")


def tiny_tokenizer(*pieces, lowercase=True):
    """A WordPiece tokenizer of the special tokens and these pieces."""
    words = [*SPECIAL_TOKENS.values(), *pieces]
    ids = {piece: number for number, piece in enumerate(words)}
    backend = _bert_tokenizer(ids, lowercase, strip_accents=None)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS)


def random_scorer(*pieces, seed=0):
    """A scorer over a small BERT with random weights that differ enough to have opinions."""
    tokenizer = tiny_tokenizer(*(pieces or TINY))
    config = tiny_config(len(tokenizer), initializer_range=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TorchScorer(BertForMaskedLM(config).eval(), tokenizer)


class Watched:
    """A scorer that remembers the rows of each pass."""

    def __init__(self, scorer):
        self.tokenizer, self.max_length, self._scorer = scorer.tokenizer, scorer.max_length, scorer
        self.passes = []

    def logits(self, rows, positions):
        self.passes.append([list(row) for row in rows])
        return self._scorer.logits(rows, positions)


@pytest.fixture
def tiny():
    """A scorer with a vocabulary of eleven tokens."""
    return random_scorer()
