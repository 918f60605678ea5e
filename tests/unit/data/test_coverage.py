"""What masks cover, against counts over the masked rows themselves."""

import json

import numpy as np
import pytest

from fitb.config import MaskConfig
from fitb.data.coverage import mask_coverage
from fitb.data.masking import IGNORE_INDEX, mask_rows


@pytest.mark.parametrize("strategy", ["token", "whole_word", "span"])
@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_coverage_is_counted_over_slots_and_ordinary_tokens(
    vocabulary, make_rows, strategy, fraction
):
    rows, config = make_rows(300, 64), MaskConfig(strategy, fraction=fraction)
    columns = rows.input_ids, rows.word_starts
    settings = {"vocabulary": vocabulary, "config": config, "seed": 3}
    found = mask_coverage(*columns, **settings)
    assert json.loads(json.dumps(found)) == found
    batch = mask_rows(*columns, np.arange(300), np.zeros(300, np.int64), **settings)
    used = batch.labels != IGNORE_INDEX
    shown = np.take_along_axis(batch.input_ids, batch.slots, 1)[used]
    other = (shown != vocabulary.mask_id) & (shown != batch.labels[used])
    ordinary = (rows.input_ids > 4) & (rows.word_starts.cumsum(1) > 0)  # no tail of a cut word
    assert found == {
        "strategy": strategy,
        "fraction": fraction,
        "rows": 300,
        "slots_mean": pytest.approx(np.mean(used.sum(1)), abs=1e-6),
        "slots_std": pytest.approx(np.std(used.sum(1)), abs=1e-6),
        "mask_share": pytest.approx((shown == vocabulary.mask_id).mean(), abs=1e-6),
        "random_share": pytest.approx(other.mean(), abs=1e-6),
        "coverage": pytest.approx(used.sum() / ordinary.sum(), abs=1e-6),
    }


def test_rows_without_words_and_no_rows_cover_nothing(vocabulary, make_rows):
    rows = make_rows(3, 16)
    rows.input_ids[:, 1:], rows.word_starts[:] = 0, False
    for size in (3, 0):
        columns = rows.input_ids[:size], rows.word_starts[:size]
        found = mask_coverage(*columns, vocabulary=vocabulary, config=MaskConfig(), seed=3)
        assert found["coverage"] == found["slots_mean"] == found["mask_share"] == 0
