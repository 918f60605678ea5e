"""Counts of real masks against naive loops over rows, and against a model that knows all."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluating import LENGTH, masked_rows, sharp_model
from transformers import BertConfig

from fitb.config import MaskConfig
from fitb.data.batch import Batch
from fitb.data.masking import IGNORE_INDEX
from fitb.evaluation.count import choose_rows, count
from fitb.evaluation.row_counts import PLAIN
from fitb.infer.windows import windows_of
from fitb.model.positions import trained_length


@pytest.fixture
def model(tokenizer):
    return sharp_model(tokenizer)


@pytest.fixture
def counted(model, memory, vocabulary):
    """Count rows, all of them where none are named, by the model or another one."""

    def counted(rows=range(11), model=model, **settings):
        settings = {"mask": MaskConfig(fraction=0.3), **settings}
        rows = np.array(rows, dtype=np.int64)
        return count(model, memory, rows, vocabulary=vocabulary, **settings)

    return counted


class Oracle(torch.nn.Module):
    """Stands where a model stands: hidden states are one-hot true tokens, the head is linear."""

    def __init__(self, memory, vocab_size, scale):
        super().__init__()
        self.config = BertConfig(max_position_embeddings=LENGTH)
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        ids = torch.from_numpy(memory.input_ids)
        self.hidden = torch.nn.functional.one_hot(ids, vocab_size).float()
        no_layers = SimpleNamespace(layer=[])
        self.bert = SimpleNamespace(embeddings=self.states, encoder=no_layers)

    def states(self, input_ids):
        assert input_ids.shape == self.hidden.shape[:2]
        return self.hidden.to(self.scale.dtype)

    def cls(self, hidden):
        return hidden * self.scale


def naive_row(model, memory, row, vocabulary, mask, seed):
    """One row alone, a window at a time: all logits at all positions, then Python loops."""
    ids, starts = memory.input_ids[row], memory.word_starts[row]
    batch = Batch.of(masked_rows(memory, [row], vocabulary, mask, seed))
    shown = batch.input_ids[0][batch.attention_mask[0] == 1].tolist()
    labels = [label for label in batch.labels[0].tolist() if label != IGNORE_INDEX]
    places = batch.slots[0].tolist()[: len(labels)]
    found, rank_at = dict.fromkeys(PLAIN, 0), {}
    for window in windows_of(len(shown), places, trained_length(model.config)):
        with torch.no_grad():
            logits = model(torch.tensor([window.cut(shown)])).logits[0].tolist()
        for number in window.numbers:
            place, label = places[number], labels[number]
            scores = logits[place - window.begin]
            rank_at[place] = 1 + sum(score > scores[label] for score in scores)
            found["loss_sum"] += math.log(sum(math.exp(s - scores[label]) for s in scores))
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


@pytest.mark.parametrize("most", [16, LENGTH], ids=["windows", "whole"])
@pytest.mark.parametrize(
    ("strategy", "batch_rows"), [("token", 2), ("whole_word", 1), ("whole_word", 64), ("span", 4)]
)
def test_counts_equal_naive_loops_over_rows_and_windows_alone(
    counted, model, memory, vocabulary, strategy, batch_rows, most
):
    """Past the trained length every model was as good as chance."""
    model.config.trained_length = most
    mask = MaskConfig(strategy=strategy, fraction=0.4)
    rows = [3, 0, 10, 4, 7, 2, 5, 8]
    counts = counted(rows, mask=mask, seed=5, batch_rows=batch_rows)
    assert list(dict.fromkeys(counts.rows)) == rows
    assert counts.column("loss_sum").dtype == np.float64
    for row in rows:
        for name, expected in naive_row(model, memory, row, vocabulary, mask, 5).items():
            found = counts.column(name)[counts.rows == row].sum()
            assert found == pytest.approx(expected, rel=1e-4), name
    assert counts.column("num_words").sum() > 0


def test_ties_are_won_and_nan_loses_and_bfloat16_is_scored_in_float32(counted, memory, vocabulary):
    for scale, dtype in ((0.0, torch.float32), (1.5, torch.bfloat16)):
        found = counted(model=Oracle(memory, vocabulary.size, scale).to(dtype))
        loss = math.log(math.exp(scale) + vocabulary.size - 1) - scale
        np.testing.assert_allclose(
            found.column("loss_sum"), found.column("num_slots") * loss, rtol=1e-6
        )
        np.testing.assert_array_equal(found.column("top1"), found.column("num_slots"))
    broken = counted(model=Oracle(memory, vocabulary.size, math.nan))
    assert broken.column("top5").sum() == broken.column("words_right").sum() == 0
    assert np.isnan(broken.column("loss_sum")[broken.column("num_slots") > 0]).all()


def test_what_two_documents_have_in_a_row_is_counted_apart(counted, memory, vocabulary):
    mask = MaskConfig(fraction=0.9)
    counts = counted([8, 4, 10], mask=mask)
    assert counts.rows.tolist() == [8, 4, 4, 10]
    assert counts.documents.tolist() == [800, 400, 401, 1000]
    memory.input_ids[4, 10:-1] = memory.input_ids[4, -1]  # the second is of no token now
    memory.word_starts[4, 10:-1] = False
    first = counted([4], mask=mask)
    assert first.documents.tolist() == [400]
    whole = masked_rows(memory, [4], vocabulary, mask)
    assert first.column("num_slots")[0] == (whole.labels >= 0).sum()


@pytest.mark.parametrize("rows", [[], [6]])
def test_no_rows_and_a_row_of_special_tokens_count_as_nothing(counted, memory, tokenizer, rows):
    memory.input_ids[6, 1:] = tokenizer.pad_token_id
    memory.word_starts[6] = False
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


@pytest.mark.parametrize(("num_rows", "wanted"), [(10, 0), (10, 3), (10, 10), (3, 9), (0, 0)])
def test_chosen_rows_are_spread_evenly_and_never_twice(num_rows, wanted):
    rows = choose_rows(num_rows, wanted)
    assert len(rows) == min(wanted or num_rows, num_rows)
    assert len(set(rows.tolist())) == len(rows)
    assert all(0 <= row < num_rows for row in rows)
    if len(rows) > 2:
        assert np.diff(rows, n=2).max() <= 1
