"""Embedding rows for tokens added to the vocabulary of a trained model.

A new row is the mean of the rows of the subwords that it replaces: a random row can dominate the
softmax, a mean of trained rows cannot (J. Hewitt, Initializing New Word Embeddings for Pretrained
Language Models, 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import BertForMaskedLM

from fitb.model.loaded import Loaded


def extend_embeddings(model: BertForMaskedLM, added: Sequence[Mapping[str, Any]]) -> None:
    """Add one embedding row for each added token; existing rows stay bitwise the same.

    Input embeddings, the decoder tied to them, its bias and `config.vocab_size` grow.

    Args:
        model: a model on the CPU that lacks exactly the added tokens.
        added: added tokens from corpus.tokenizer.added_tokens, ids from the vocabulary size on.
    """
    size = model.config.vocab_size
    assert [entry["id"] for entry in added] == list(range(size, size + len(added)))
    with torch.random.fork_rng(devices=[]):  # the random rows are overwritten
        model.resize_token_embeddings(size + len(added), mean_resizing=False)
    rows: torch.Tensor = model.bert.embeddings.word_embeddings.weight
    biases: torch.Tensor = model.cls.predictions.bias
    with torch.no_grad():
        for entry in added:
            for parameter in (rows, biases):
                parameter[entry["id"]] = parameter[entry["pieces"]].float().mean(0)


def extended(loaded: Loaded, tokenizer: Mapping[str, Any]) -> Loaded:
    """Extend a model that lacks exactly the added tokens of the shards; return others unchanged.

    Models that have the tokens already or do not fit the tokenizer are left to the contract check.

    Args:
        loaded: a loaded model.
        tokenizer: manifest entry of the tokenizer, from corpus.tokenizer.describe_tokenizer.
    """
    added = tokenizer.get("added", ())
    lacks = loaded.model.config.vocab_size == tokenizer["vocab_size"] - len(added)
    saved_with = loaded.tokenizer_fingerprint
    if not added or not lacks or saved_with not in (None, tokenizer["base_fingerprint"]):
        return loaded
    extend_embeddings(loaded.model, added)
    return replace(loaded, added={entry["token"]: entry["id"] for entry in added})
