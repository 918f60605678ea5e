"""Promises of masks: kept by every strategy, and every broken one is told of."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fitb.config import MaskConfig
from fitb.data import validate as module
from fitb.data.masking import IGNORE_INDEX, Vocabulary, mask_rows
from fitb.data.validate import validate
from fitb.errors import DataError

CONFIGS = [
    MaskConfig(strategy=strategy, fraction=fraction)
    for strategy in ("token", "whole_word", "span")
    for fraction in (0.05, 0.15, 0.5)
]


WHOLE = MaskConfig()


@pytest.fixture
def check(vocabulary, make_rows):
    def run(configs=(WHOLE,), rows=None, **changes):
        rows = rows or make_rows(300, 64)
        return validate(
            rows.input_ids,
            rows.word_starts,
            vocabulary=replace(vocabulary, **changes),
            configs=configs,
            seed=3,
        )

    return run


def test_every_strategy_keeps_its_promises_and_says_what_it_covers(check, vocabulary, make_rows):
    rows = make_rows(300, 64)
    results = check(CONFIGS, rows)
    assert json.loads(json.dumps(results)) == results
    for config, result in zip(CONFIGS, results, strict=True):
        masked = mask_rows(
            rows.input_ids, rows.word_starts, np.arange(300), np.zeros(300, np.int64),
            seed=3, vocabulary=vocabulary, config=config,
        )  # fmt: skip
        per_row = [(row != IGNORE_INDEX).sum() for row in masked.labels]
        shown = np.take_along_axis(masked.input_ids, masked.slots, 1)
        assert (result["strategy"], result["fraction"]) == (config.strategy, config.fraction)
        assert result["rows"] == 300
        assert result["slots_mean"] == pytest.approx(np.mean(per_row), abs=1e-6)
        assert result["slots_std"] == pytest.approx(np.std(per_row), abs=1e-6)
        hidden = (shown == vocabulary.mask_id) & (masked.labels != IGNORE_INDEX)
        assert result["mask_share"] == pytest.approx(hidden.sum() / sum(per_row), abs=1e-6)
        assert 0.05 < result["random_share"] < 0.15


def test_coverage_is_the_share_of_tokens_that_may_be_masked(check, make_rows):
    rows = make_rows(200, 64, tails=False)
    result = check([MaskConfig(strategy="token", fraction=0.2)], rows)[0]
    ordinary = (rows.input_ids > 4).sum()
    assert result["coverage"] == pytest.approx(result["slots_mean"] * 200 / ordinary, abs=1e-6)
    assert result["coverage"] == pytest.approx(0.2, abs=0.01)


def test_shares_of_all_or_nothing_are_met_exactly(check):
    for mask_share, random_share in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        config = MaskConfig(mask_share=mask_share, random_share=random_share)
        assert check([config])[0]["mask_share"] == mask_share


def test_rows_without_words_cover_nothing(check, make_rows):
    rows = make_rows(3, 16)
    rows.input_ids[:, 1:] = 0
    rows.word_starts[:] = False
    for result in check(CONFIGS, rows):
        assert result["coverage"] == result["slots_mean"] == result["mask_share"] == 0


def test_no_rows_are_no_failure(check, make_rows):
    rows = make_rows(3, 16)
    none = type(rows)(rows.input_ids[:0], rows.word_starts[:0])
    assert check(CONFIGS, none)[0]["rows"] == 0


def special(masked):
    masked.slots[0, 0], masked.labels[0, 0] = 0, 2  # [CLS]


def wrong_label(masked):
    masked.labels[1, 0] += 1


def outside(masked):
    free = next(p for p in range(1, 64) if p not in masked.slots[2])
    masked.input_ids[2, free] += 1


def one_slot_less(masked):
    last = int((masked.labels[3] != IGNORE_INDEX).sum()) - 1
    place = masked.slots[3, last]
    masked.input_ids[3, place] = masked.labels[3, last]
    masked.labels[3, last], masked.slots[3, last] = IGNORE_INDEX, 0


def no_slots(masked):
    used = masked.labels[4] != IGNORE_INDEX
    masked.input_ids[4, masked.slots[4][used]] = masked.labels[4][used]
    masked.labels[4], masked.slots[4] = IGNORE_INDEX, 0


def always_mask(masked):
    used = masked.labels != IGNORE_INDEX
    masked.input_ids[np.nonzero(used)[0], masked.slots[used]] = 4


def always_a_special_token(masked):
    used = masked.labels != IGNORE_INDEX
    masked.input_ids[np.nonzero(used)[0], masked.slots[used]] = 1


@pytest.mark.parametrize(
    ("strategy", "harm", "message"),
    [
        ("token", special, "1 of [0-9]+ slots are special tokens"),
        ("span", wrong_label, "1 of [0-9]+ labels are not the token of the row"),
        ("whole_word", outside, "1 tokens outside the slots have changed"),
        ("token", one_slot_less, "1 of 300 rows miss their budget"),
        ("whole_word", one_slot_less, "1 of [0-9]+ masked words are cut"),
        ("span", no_slots, "1 of 300 rows fall short of their budget by a word that would fit"),
        ("whole_word", always_mask, r"mask_share 1\.0000 .* expected 0\.8000 within 0\.0"),
        ("token", always_mask, r"random_share 0\.0000 .* expected 0\.098"),
        ("token", always_a_special_token, "show a special token drawn at random"),
    ],
)
def test_a_broken_promise_is_told_of(check, make_rows, monkeypatch, strategy, harm, message):
    def harmed(*args, **settings):
        masked = mask_rows(*args, **settings)
        harm(masked)
        return masked

    monkeypatch.setattr(module, "mask_rows", harmed)
    rows = make_rows(300, 64, longest_word=5, tails=False, seed=1)
    config = MaskConfig(strategy=strategy, fraction=0.3)
    with pytest.raises(DataError, match=f"strategy={strategy} fraction=0.3: .*{message}"):
        check([config], rows)


def test_more_slots_than_the_budget_are_told_of(check, monkeypatch):
    monkeypatch.setattr(module, "budgets", lambda words, *_: np.zeros(len(words), np.int64))
    with pytest.raises(DataError, match="300 rows have more slots than their budget"):
        check()


def test_all_failures_of_all_settings_come_at_once(check, monkeypatch):
    def harmed(*args, **settings):
        masked = mask_rows(*args, **settings)
        wrong_label(masked)
        outside(masked)
        return masked

    monkeypatch.setattr(module, "mask_rows", harmed)
    with pytest.raises(DataError) as caught:
        check(CONFIGS)
    assert str(caught.value).count("labels are not the token") == len(CONFIGS)
    assert str(caught.value).count("outside the slots") == len(CONFIGS)


def test_a_token_drawn_at_random_that_is_the_true_one_is_allowed_for(check, make_rows):
    """Of two ordinary tokens half of the random ones are the true one."""
    rows = make_rows(400, 64)
    rows.input_ids[rows.input_ids > 4] = 5 + rows.input_ids[rows.input_ids > 4] % 2
    result = check([MaskConfig(mask_share=0.0, random_share=1.0)], rows, size=7)[0]
    assert result["random_share"] == pytest.approx(0.5, abs=0.05)


def test_vocabulary_tables_cannot_be_written_to():
    vocabulary = Vocabulary(9, 0, 4, (0, 1, 2, 3, 4), 3)
    for table in (vocabulary.is_special(), vocabulary.ordinary_ids()):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1
    assert vocabulary.ordinary_ids().tolist() == [5, 6, 7, 8]
