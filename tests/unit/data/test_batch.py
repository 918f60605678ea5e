"""Batches of tensors: what they share with masked rows, their parts, their coverage."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from fitb.config import MaskConfig
from fitb.data.batch import Batch
from fitb.data.masking import IGNORE_INDEX, Masked, mask_rows


@pytest.fixture
def masked(vocabulary, make_rows):
    rows = make_rows(30, 48)
    return mask_rows(
        rows.input_ids, rows.word_starts, np.arange(30), np.zeros(30, np.int64),
        seed=5, vocabulary=vocabulary, config=MaskConfig(),
    )  # fmt: skip


def test_a_batch_shares_the_memory_of_masked_rows_and_its_parts_are_its_rows(masked):
    batch = Batch.of(masked)
    part = batch.part(4, 7).to(torch.device("cpu"))
    for field in fields(masked):
        tensor, array = getattr(batch, field.name), getattr(masked, field.name)
        assert tensor.dtype == torch.int64
        assert tensor.shape == array.shape
        assert tensor.data_ptr() == array.ctypes.data
        assert torch.equal(getattr(part, field.name), tensor[4:7])


def test_coverage_counts_rows_tokens_slots_and_their_squares(masked):
    batch = Batch.of(masked)
    used = (masked.labels != IGNORE_INDEX).sum(axis=1).tolist()
    tokens = int((masked.attention_mask == 1).sum())
    assert batch.coverage().dtype == torch.float64
    assert batch.coverage().tolist() == [30, tokens, sum(used), sum(n * n for n in used)]
    parts = [batch.part(0, 11).coverage(), batch.part(11, 30).coverage()]
    assert torch.equal(parts[0] + parts[1], batch.coverage())


def test_a_batch_knows_whether_a_row_ends_in_padding_and_hides_it_only_then(masked):
    batch = Batch.of(masked)
    assert batch.padded
    assert torch.equal(batch.real(), batch.attention_mask == 1)
    full = masked.attention_mask.all(axis=1)
    whole = Batch.of(Masked(*(getattr(masked, f.name)[full] for f in fields(masked))))
    assert len(whole.input_ids) and not whole.padded and whole.real() is None
    assert batch.part(0, 4).padded and not whole.part(0, 1).padded
