"""New embedding rows for tokens that were added to the vocabulary a model was trained with.

A new row is the mean of the rows of the pieces that the token was cut into before, so the model
starts from what it knew of the word. (A random row can outweigh all others in the softmax; a mean
of trained rows cannot: J. Hewitt, Initializing New Word Embeddings for Pretrained Language Models,
2021.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import BertForMaskedLM

from fitb.model.loaded import Loaded


def extend_embeddings(model: BertForMaskedLM, added: Sequence[Mapping[str, Any]]) -> None:
    """Give a model one row for each added token; the rows that it has stay bitwise the same.

    Input embeddings, the decoder tied to them, and its bias grow; so does `config.vocab_size`.

    Args:
        model: on the CPU, its vocabulary smaller by exactly the added tokens.
        added: as from tokenizer.added_tokens: ids from the vocabulary size on, in order.
    """
    size = model.config.vocab_size
    assert [entry["id"] for entry in added] == list(range(size, size + len(added)))
    with torch.random.fork_rng(devices=[]):  # the rows that transformers draws are overwritten
        model.resize_token_embeddings(size + len(added), mean_resizing=False)
    rows: torch.Tensor = model.bert.embeddings.word_embeddings.weight
    biases: torch.Tensor = model.cls.predictions.bias
    with torch.no_grad():
        for entry in added:
            for parameter in (rows, biases):
                parameter[entry["id"]] = parameter[entry["pieces"]].float().mean(0)


def extended(loaded: Loaded, tokenizer: Mapping[str, Any]) -> Loaded:
    """Extend a model that lacks exactly the added tokens of the shards; leave any other alone.

    A model that has them already, or is otherwise unlike the tokenizer, is for the contract to
    judge; so is one whose tokenizer lies there in another form than tokenizer.json, or not at all.

    Args:
        loaded: of a folder or hub name; a geometry has the whole vocabulary from the start.
        tokenizer: the manifest's entry, from tokenizer.describe_tokenizer.
    """
    added = tokenizer.get("added", ())
    lacks = loaded.model.config.vocab_size == tokenizer["vocab_size"] - len(added)
    saved_with = loaded.tokenizer_fingerprint
    if not added or not lacks or saved_with not in (None, tokenizer["base_fingerprint"]):
        return loaded
    extend_embeddings(loaded.model, added)
    return replace(loaded, added={entry["token"]: entry["id"] for entry in added})
