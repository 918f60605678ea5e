"""Pseudo-perplexity against a loop over tokens, alone and with the within-word rule."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluating import sharp_model

from fitb.base.world import World
from fitb.corpus.wordpiece import join
from fitb.evaluation.data_parallel import Ranks
from fitb.evaluation.metrics import text_metrics
from fitb.evaluation.pseudo_perplexity import TextCounts, count_texts
from fitb.evaluation.score import Bert

ALONE = Ranks(World(0, 1, 0))


@pytest.fixture
def where(memory, vocabulary, tokenizer):
    return SimpleNamespace(shards=memory, vocabulary=vocabulary, tokenizer=tokenizer)


def naive(model, ids, starts, vocabulary):
    """Nats, tokens and words of each document of a row; tokens that no word began are context."""
    found, word, begun = [[0.0, 0, []]], [], False
    real = [token for token in ids.tolist() if token != vocabulary.pad_id]
    words = []
    for place, token in enumerate(real):
        if starts[place]:
            word, begun = [], True
        if token in vocabulary.special_ids:
            words.append(None)
        elif begun:
            word.append(place)
            words.append(word)
        else:
            words.append(None)
    for place, token in enumerate(real):
        if token == vocabulary.sep_id and place < len(real) - 1:
            found.append([0.0, 0, []])
        if words[place] is None:
            continue
        shown = [
            vocabulary.mask_id if other >= place and words[other] is words[place] else kept
            for other, kept in enumerate(real)
        ]
        with torch.no_grad():
            logits = model(torch.tensor([shown])).logits[0, place].double()
        found[-1][0] -= float(logits.log_softmax(-1)[token])
        found[-1][1] += 1
        found[-1][2].append(token)
    return [each for each in found if each[1]]


@pytest.mark.parametrize("batch_rows", [3, 64])
def test_sums_equal_a_loop_over_the_tokens_of_each_document(where, memory, tokenizer, batch_rows):
    model = sharp_model(tokenizer)
    rows = np.array([4, 0, 10, 7, 2])
    counts = count_texts(where, rows, {"model": Bert(model)}, ALONE, batch_rows)["model"]
    expected = [
        each
        for row in rows
        for each in naive(model, memory.input_ids[row], memory.word_starts[row], where.vocabulary)
    ]
    used = counts.tokens > 0
    assert len(np.unique(counts.documents[used])) == len(expected) == 6  # row 4 has two
    assert counts.tokens[used].tolist() == [tokens for _, tokens, _ in expected]
    assert counts.nats[used] == pytest.approx([nats for nats, _, _ in expected], rel=1e-5)


def test_bytes_are_those_of_the_text(where, memory, tokenizer):
    counts = count_texts(where, np.array([0, 2]), {"model": Bert(sharp_model(tokenizer))}, ALONE)
    for row, found in zip((0, 2), counts["model"].num_bytes.tolist(), strict=True):
        ids = [i for i in memory.input_ids[row].tolist() if i not in where.vocabulary.special_ids]
        assert found == len(join(tokenizer.convert_ids_to_tokens(ids)).encode())


def test_a_guess_among_all_tokens_has_their_number_as_pseudo_perplexity():
    tokens = np.array([3, 1, 4])
    counts = TextCounts(np.array([0, 1, 1]), np.log(50) * tokens, tokens, np.array([9, 4, 8]))
    sums = np.stack([counts.nats, counts.tokens, counts.num_bytes], axis=1)
    found = text_metrics(counts.documents, sums)
    assert found["pppl"].value == pytest.approx(50)
    assert found["pppl"].low == pytest.approx(found["pppl"].high) == pytest.approx(50)
    assert found["bits_per_byte"].value == pytest.approx(8 * np.log2(50) / 21)
    assert found["bits_per_byte"].low <= found["bits_per_byte"].value <= found["bits_per_byte"].high
