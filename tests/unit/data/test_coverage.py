"""What masks cover, against counts over the masked rows themselves."""

import json

import numpy as np
import pytest
from masking_rows import STRATEGIES, masked, settings

from fitb.config import MaskConfig
from fitb.data.coverage import mask_coverage
from fitb.data.masking import IGNORE_INDEX


def covered(rows, vocabulary, config, seed=3):
    return mask_coverage(
        rows.input_ids, rows.word_starts, vocabulary=vocabulary, config=config, seed=seed
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_coverage_is_counted_over_slots_and_ordinary_tokens(
    vocabulary, make_rows, strategy, fraction
):
    rows, config = make_rows(300, 64, tails=False), settings(strategy, fraction=fraction)
    found = covered(rows, vocabulary, config)
    assert json.loads(json.dumps(found)) == found
    batch = masked(rows, vocabulary, config, seed=3, numbers=np.arange(300))
    used = batch.labels != IGNORE_INDEX
    shown = np.take_along_axis(batch.input_ids, batch.slots, 1)[used]
    other = (shown != vocabulary.mask_id) & (shown != batch.labels[used])
    assert found == {
        "strategy": strategy,
        "fraction": fraction,
        "rows": 300,
        "slots_mean": pytest.approx(np.mean(used.sum(1)), abs=1e-6),
        "slots_std": pytest.approx(np.std(used.sum(1)), abs=1e-6),
        "mask_share": pytest.approx((shown == vocabulary.mask_id).mean(), abs=1e-6),
        "random_share": pytest.approx(other.mean(), abs=1e-6),
        "coverage": pytest.approx(used.sum() / (rows.input_ids > 4).sum(), abs=1e-6),
    }


def test_rows_without_words_and_no_rows_cover_nothing(vocabulary, make_rows):
    rows = make_rows(3, 16)
    rows.input_ids[:, 1:], rows.word_starts[:] = 0, False
    none = type(rows)(rows.input_ids[:0], rows.word_starts[:0])
    for some in (rows, none):
        found = covered(some, vocabulary, MaskConfig())
        assert found["coverage"] == found["slots_mean"] == found["mask_share"] == 0
