"""Tiny BERTs and batches of rows with different padding."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForMaskedLM

from fitb.data.batch import Batch
from fitb.data.masking import IGNORE_INDEX
from tests.unit.conftest import tiny_config

VOCABULARY, LENGTH, SLOTS = 40, 12, 3


def tiny_bert(layers, width, heads, seed, attention="sdpa", dropout=0.0):
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    sizes |= {"intermediate_size": 2 * width, "max_position_embeddings": LENGTH}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    form = {"initializer_range": 0.3, "attn_implementation": attention}
    config = tiny_config(VOCABULARY, **sizes, **rates, **form)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForMaskedLM(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0, 0.1)
    return model


def padded_batch(num_rows, seed=0, longest=LENGTH):
    """Rows of 3 to `longest` real tokens and 0 to SLOTS used slots."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(3, longest + 1, (num_rows,), generator=draw)
    sizes[0] = longest
    mask = (torch.arange(LENGTH) < sizes[:, None]).long()
    ids = torch.randint(5, VOCABULARY, (num_rows, LENGTH), generator=draw)
    used = torch.arange(SLOTS) < torch.randint(0, SLOTS + 1, (num_rows, 1), generator=draw)
    used[0] = True
    used &= torch.arange(SLOTS) < (sizes - 1)[:, None]
    labels = torch.randint(5, VOCABULARY, (num_rows, SLOTS), generator=draw)
    return Batch(
        input_ids=ids * mask,
        attention_mask=mask,
        slots=torch.where(used, 1 + torch.arange(SLOTS), 0),
        labels=torch.where(used, labels, IGNORE_INDEX),
        slot_words=torch.where(used, 0, -1),
    )


def states_and_scores(model, batch):
    """Hidden states 0 .. N and scores of layers 1 .. N, in eager arithmetic, and the logits."""
    bert, heads = model.bert, model.config.num_attention_heads
    away = (1.0 - batch.attention_mask[:, None, None, :].float()) * -10000.0
    states = bert.embeddings(input_ids=batch.input_ids)
    hidden, scores = [states], []
    for layer in bert.encoder.layer:
        attention = layer.attention.self
        query, key, value = (
            projection(states).unflatten(-1, (heads, -1)).transpose(1, 2)
            for projection in (attention.query, attention.key, attention.value)
        )
        score = query @ key.mT / query.shape[-1] ** 0.5 + away
        context = (score.softmax(-1) @ value).transpose(1, 2).flatten(2)
        attended = layer.attention.output(context, states)
        states = layer.output(layer.intermediate(attended), attended)
        hidden.append(states)
        scores.append(score)
    return hidden, scores, model.cls(states)


@pytest.fixture
def make_bert():
    return tiny_bert


@pytest.fixture
def make_batch():
    return padded_batch


@pytest.fixture
def student(make_bert):
    return make_bert(layers=2, width=12, heads=3, seed=1)


@pytest.fixture
def teacher(make_bert):
    return make_bert(layers=4, width=24, heads=3, seed=2)
