"""Counts of real masks against naive loops over rows, and against a model that knows all."""

import math

import numpy as np
import pytest
import torch
from evaluating import MemoryShards, masked_rows, sharp_model
from transformers import BertConfig

from fitb.config import MaskConfig
from fitb.data.batch import Batch
from fitb.data.masking import IGNORE_INDEX, Vocabulary
from fitb.evaluation.count import choose_rows, count
from fitb.evaluation.row_counts import PLAIN

LENGTH = 24


@pytest.fixture
def shards(tokenizer):
    draw = np.random.default_rng(3)
    ids = draw.integers(5, len(tokenizer), (11, LENGTH))
    starts = draw.random((11, LENGTH)) < 0.5
    starts[:, 1], starts[7, 1:3] = True, False  # row 7 begins inside a word
    ids[:, 0], ids[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids[4, 9] = tokenizer.sep_token_id
    ids[10, 5], ids[10, 6:] = tokenizer.sep_token_id, tokenizer.pad_token_id
    starts[4, 10] = True
    return MemoryShards(ids, starts & (ids >= 5))


@pytest.fixture
def vocabulary(tokenizer):
    return Vocabulary.of(tokenizer)


@pytest.fixture
def model(tokenizer):
    return sharp_model(tokenizer)


@pytest.fixture
def counted(model, shards, vocabulary):
    """Count rows, all of them where none are named, by the model or another one."""

    def counted(rows=range(11), model=model, **settings):
        settings = {"mask": MaskConfig(fraction=0.3), **settings}
        rows = np.array(rows, dtype=np.int64)
        return count(model, shards, rows, vocabulary=vocabulary, **settings)

    return counted


class Oracle(torch.nn.Module):
    """Stands where a model stands: hidden states are one-hot true tokens, the head is linear."""

    def __init__(self, shards, vocab_size, scale=20.0, wrong=()):
        super().__init__()
        self.config = BertConfig(max_position_embeddings=LENGTH)
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.hidden = torch.nn.functional.one_hot(
            torch.from_numpy(shards.input_ids), vocab_size
        ).float()
        for row, place in wrong:
            self.hidden[row, place, (shards.input_ids[row, place] + 1) % vocab_size] = 2.0

    def bert(self, input_ids, attention_mask):
        assert input_ids.shape == attention_mask.shape == self.hidden.shape[:2]
        return (self.hidden.to(self.scale.dtype),)

    def cls(self, hidden):
        return hidden * self.scale


def naive_row(model, shards, row, vocabulary, mask, seed):
    """One row alone: all logits at all positions, then Python loops."""
    ids, starts = shards.input_ids[row], shards.word_starts[row]
    batch = Batch.of(masked_rows(shards, [row], vocabulary, mask, seed))
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[0]
    found = dict.fromkeys(("loss_sum", "num_slots", "top1", "top5", "num_words", "words_right"), 0)
    rank_at = {}
    for place, label in zip(batch.slots[0].tolist(), batch.labels[0].tolist(), strict=True):
        if label == IGNORE_INDEX:
            continue
        scores = logits[place].tolist()
        total = math.log(sum(math.exp(score - scores[label]) for score in scores))
        rank_at[place] = 1 + sum(score > scores[label] for score in scores)
        found["loss_sum"] += total
        found["num_slots"] += 1
        found["top1"] += rank_at[place] == 1
        found["top5"] += rank_at[place] <= 5
    words = []
    for place, token in enumerate(ids.tolist()):
        if token in vocabulary.special_ids:
            words.append([])
        elif starts[place] or not words or not words[-1]:
            words.append([place])
        else:
            words[-1].append(place)
    for word in filter(None, words):
        if starts[word[0]] and all(place in rank_at for place in word):
            found["num_words"] += 1
            found["words_right"] += all(rank_at[place] == 1 for place in word)
    return found


@pytest.mark.parametrize("strategy", ["token", "whole_word", "span"])
def test_counts_equal_naive_loops_over_rows_alone(counted, model, shards, vocabulary, strategy):
    mask = MaskConfig(strategy=strategy, fraction=0.4)
    rows = [3, 0, 10, 4, 7]
    counts = counted(rows, mask=mask, seed=5, batch_rows=2)
    assert list(dict.fromkeys(counts.rows)) == rows
    assert counts.column("loss_sum").dtype == np.float64
    for row in rows:
        for name, expected in naive_row(model, shards, row, vocabulary, mask, 5).items():
            found = counts.column(name)[counts.rows == row].sum()
            assert found == pytest.approx(expected, rel=1e-5), name
    assert counts.column("num_words").sum() > 0


def test_one_wrong_token_spoils_its_word_and_no_other(counted, shards, vocabulary):
    mask = MaskConfig(fraction=0.6)
    right = counted(model=Oracle(shards, vocabulary.size), mask=mask)
    np.testing.assert_array_equal(right.column("top1"), right.column("num_slots"))
    np.testing.assert_array_equal(right.column("words_right"), right.column("num_words"))
    assert right.column("loss_sum").max() < 1e-3
    masked = masked_rows(shards, range(11), vocabulary, mask)
    wrong = ((2, int(masked.slots[2, 1])),)
    spoilt = counted(model=Oracle(shards, vocabulary.size, wrong=wrong), mask=mask)
    lost = (right.rows == 2).astype(int)
    for name, expected in (("top1", lost), ("words_right", lost), ("num_words", 0), ("top5", 0)):
        np.testing.assert_array_equal(right.column(name) - spoilt.column(name), expected)


def test_ties_are_won_and_nan_loses_and_bfloat16_is_scored_in_float32(counted, shards, vocabulary):
    for scale, dtype in ((0.0, torch.float32), (1.5, torch.bfloat16)):
        found = counted(model=Oracle(shards, vocabulary.size, scale).to(dtype))
        loss = math.log(math.exp(scale) + vocabulary.size - 1) - scale
        np.testing.assert_allclose(
            found.column("loss_sum"), found.column("num_slots") * loss, rtol=1e-6
        )
        np.testing.assert_array_equal(found.column("top1"), found.column("num_slots"))
    broken = counted(model=Oracle(shards, vocabulary.size, math.nan))
    assert broken.column("top5").sum() == broken.column("words_right").sum() == 0
    assert np.isnan(broken.column("loss_sum")[broken.column("num_slots") > 0]).all()


def test_shares_of_rows_add_up_to_the_whole(counted):
    shares = [counted(range(r, 11, 3)).totals() for r in range(3)]
    np.testing.assert_allclose(sum(shares), counted().totals(), rtol=1e-6)


def test_what_two_documents_have_in_a_row_is_counted_apart(counted, shards, vocabulary):
    mask = MaskConfig(fraction=0.9)
    counts = counted([8, 4, 10], mask=mask)
    assert counts.rows.tolist() == [8, 4, 4, 10]
    assert counts.documents.tolist() == [800, 400, 401, 1000]
    shards.input_ids[4, 10:-1] = shards.input_ids[4, -1]  # the second is of no token now
    shards.word_starts[4, 10:-1] = False
    first = counted([4], mask=mask)
    assert first.documents.tolist() == [400]
    whole = masked_rows(shards, [4], vocabulary, mask)
    assert first.column("num_slots")[0] == (whole.labels >= 0).sum()


@pytest.mark.parametrize("rows", [[], [6]])
def test_no_rows_and_a_row_of_special_tokens_count_as_nothing(counted, shards, tokenizer, rows):
    shards.input_ids[6, 1:] = tokenizer.pad_token_id
    shards.word_starts[6] = False
    counts = counted(rows)
    assert counts.rows.tolist() == rows
    np.testing.assert_array_equal(counts.totals(), np.zeros((1, len(PLAIN))))


def test_training_flags_come_back_one_by_one_and_dropout_is_off_meanwhile(counted, model):
    quiet = counted()
    model.train()
    model.cls.eval()
    flags = [module.training for module in model.modules()]
    np.testing.assert_array_equal(counted().column("loss_sum"), quiet.column("loss_sum"))
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(IndexError):
        counted([99])
    assert [module.training for module in model.modules()] == flags


def test_what_is_left_of_a_cut_word_is_neither_masked_nor_counted(counted, shards, vocabulary):
    shards.word_starts[7, 1:] = False
    shards.word_starts[7, 5] = True  # places 1 to 4 are the tail of a word
    oracle = Oracle(shards, vocabulary.size)
    oracle.hidden = oracle.hidden[7:8]
    counts = counted([7], model=oracle, mask=MaskConfig(strategy="token", fraction=0.99))
    assert counts.column("top1")[0] == counts.column("num_slots")[0] == LENGTH - 2 - 4
    assert counts.column("num_words")[0] == counts.column("words_right")[0] == 1


@pytest.mark.parametrize(("num_rows", "wanted"), [(10, 0), (10, 3), (10, 10), (3, 9), (0, 0)])
def test_chosen_rows_are_spread_evenly_and_never_twice(num_rows, wanted):
    rows = choose_rows(num_rows, wanted)
    assert len(rows) == min(wanted or num_rows, num_rows)
    assert len(set(rows.tolist())) == len(rows)
    assert all(0 <= row < num_rows for row in rows)
    if len(rows) > 2:
        assert np.diff(rows, n=2).max() <= 1
