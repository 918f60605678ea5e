"""What masks keep to over many rows, and what they may never depend on."""

import hashlib
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from masking_rows import SEED, STRATEGIES, chosen_of, masked, settings, words_of

from fitb.base import rng
from fitb.data.masking import IGNORE_INDEX, Vocabulary, mask_rows, num_slots


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels_are_the_true_tokens_and_everything_outside_slots_is_unchanged(
    vocabulary, make_rows, strategy
):
    rows = make_rows(60, 48)
    before = rows.input_ids.copy()
    batch = masked(rows, vocabulary, settings(strategy))
    assert np.array_equal(rows.input_ids, before)
    ids = batch.input_ids.copy()
    for row, places in enumerate(chosen_of(batch)):
        assert places == sorted(set(places))
        labels = batch.labels[row][batch.labels[row] != IGNORE_INDEX].tolist()
        assert labels == before[row, places].tolist()
        ids[row, places] = before[row, places]
    assert np.array_equal(ids, before)
    unused = batch.labels == IGNORE_INDEX
    assert (batch.slots[unused] == 0).all()
    assert (batch.slot_words[unused] == -1).all()
    assert np.array_equal(batch.attention_mask, (before != vocabulary.pad_id).astype(int))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_slot_words_number_the_words_of_the_row(vocabulary, make_rows, strategy):
    rows = make_rows(60, 48, tails=False)
    batch = masked(rows, vocabulary, settings(strategy, fraction=0.5))
    for row in range(60):
        words = words_of(rows.input_ids[row], rows.word_starts[row], vocabulary)
        number_of = {place: number for number, word in enumerate(words) for place in word}
        used = batch.labels[row] != IGNORE_INDEX
        expected = [number_of[place] for place in batch.slots[row][used].tolist()]
        assert batch.slot_words[row][used].tolist() == expected


@pytest.mark.parametrize("length", [8, 32, 128, 512])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_number_of_slots_is_fixed_by_length_and_settings(
    vocabulary, make_rows, strategy, length
):
    config = settings(strategy)
    assert num_slots(length, config) == max(1, round(0.15 * (length - 2)))
    for size, seed in ((1, 0), (20, 1)):
        batch = masked(make_rows(size, length, seed=seed), vocabulary, config)
        shape = (size, num_slots(length, config))
        assert batch.slots.shape == batch.labels.shape == batch.slot_words.shape == shape
        assert batch.input_ids.shape == batch.attention_mask.shape == (size, length)
        assert {getattr(batch, f.name).dtype for f in fields(batch)} == {np.dtype(np.int64)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_of_special_tokens_only_has_no_slot_and_no_rows_have_none(
    vocabulary, make_rows, strategy
):
    rows = make_rows(3, 16, tails=False)
    rows.input_ids[1] = [2, 1, 1, 3, 3, *[0] * 11]
    rows.word_starts[1] = False
    chosen = chosen_of(masked(rows, vocabulary, settings(strategy)))
    assert chosen[1] == []
    assert chosen[0]
    alone = type(rows)(rows.input_ids[1:2], rows.word_starts[1:2])
    assert chosen_of(masked(alone, vocabulary, settings(strategy))) == [[]]
    none = type(rows)(rows.input_ids[:0], rows.word_starts[:0])
    empty = masked(none, vocabulary, settings(strategy))
    assert empty.input_ids.shape == empty.attention_mask.shape == (0, 16)
    assert empty.slots.shape == empty.labels.shape == empty.slot_words.shape == (0, 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_has_the_same_mask_in_any_batch(vocabulary, make_rows, strategy):
    """Rows are masked in blocks; 700 rows of 64 tokens are more than one."""
    config, rows = settings(strategy, fraction=0.3), make_rows(700, 64)
    whole = masked(rows, vocabulary, config)
    numbers = np.arange(700) * 7 + 3
    draw = np.random.default_rng(0)
    for some in (
        [0],
        [255],
        [256],
        [699],
        *(draw.permutation(700)[:size] for size in (2, 17, 700)),
    ):
        part = type(rows)(rows.input_ids[some], rows.word_starts[some])
        batch = masked(part, vocabulary, config, numbers=numbers[some])
        for field in fields(batch):
            assert np.array_equal(getattr(batch, field.name), getattr(whole, field.name)[some])


def test_the_epoch_of_each_row_is_its_own(vocabulary, make_rows):
    """A batch may cross the end of an epoch."""
    config, rows = settings("whole_word"), make_rows(2, 48)
    epochs = np.array([0, 1])
    both = mask_rows(
        rows.input_ids, rows.word_starts, np.array([9, 9]), epochs,
        seed=SEED, vocabulary=vocabulary, config=config,
    )  # fmt: skip
    for row in range(2):
        part = type(rows)(rows.input_ids[row : row + 1], rows.word_starts[row : row + 1])
        alone = masked(part, vocabulary, config, epoch=row, numbers=[9])
        assert np.array_equal(both.slots[row], alone.slots[0])
        assert np.array_equal(both.input_ids[row], alone.input_ids[0])


def test_a_vocabulary_takes_its_ids_from_the_tokenizer():
    class Tokenizer:
        pad_token_id, mask_token_id, sep_token_id, all_special_ids = 7, 9, 8, [9, 7, 8]

        def __len__(self):
            return 20

    vocabulary = Vocabulary.of(Tokenizer())
    assert vocabulary == Vocabulary(20, 7, 9, (7, 8, 9), 8)
    assert np.flatnonzero(vocabulary.is_special()).tolist() == [7, 8, 9]
    assert replace(vocabulary, special_ids=()).is_special().sum() == 0
    assert vocabulary.ordinary_ids().tolist() == [*range(7), *range(10, 20)]
    for table in (vocabulary.is_special(), vocabulary.ordinary_ids()):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1


PINNED = {
    ("token", 1): "56310ca193343365f0b918814155a30a2f3dc75b720e9990f9f4228c835ea814",
    ("whole_word", 1): "0658f97272409391ca4b9384316ae64e90365cc8ef8f962fcbb65f5026737f2c",
    ("span", 1): "aef4d3ef0adf86ecf708eab8484200bf60407b647e6b17a3140dd891000b3077",
    ("token", 2): "56310ca193343365f0b918814155a30a2f3dc75b720e9990f9f4228c835ea814",
    ("whole_word", 2): "0658f97272409391ca4b9384316ae64e90365cc8ef8f962fcbb65f5026737f2c",
    ("span", 2): "ed49e4f7b0215f773656fe5673a48642b565eaa18f107548a620837c0d44dfdb",
}


def pinned_rows(num_rows, length, seed):
    """Rows from keys, so that no generator of a library decides them; odd ones among them."""
    where = (np.arange(num_rows)[:, None], np.arange(length)[None])
    ids = 5 + (rng.keyed(seed, 1, *where) % np.uint64(55)).astype(np.int64)
    drawn = rng.uniform(seed, 2, *where)
    ids = np.where(drawn < 0.08, (drawn * 1000).astype(np.int64) % 5, ids)
    starts = rng.uniform(seed, 3, *where) < rng.uniform(seed, 4, where[0])
    starts[::2] &= ids[::2] > 4
    ids[:, 0] = 2
    return ids, starts


@pytest.mark.parametrize(("strategy", "version"), PINNED)
def test_masks_of_many_settings_are_pinned_to_the_bit(vocabulary, strategy, version):
    """The digests of version 1 are those of the first form of the code, before it was fast."""
    digest = hashlib.sha256()
    for seed, changes in enumerate(
        (
            {},
            {"fraction": 0.5, "mask_share": 0.5, "random_share": 0.3},
            {"fraction": 0.01},
            {"fraction": 0.95, "span_p": 0.05, "span_max_words": 1000},
            {"fraction": 0.4, "span_p": 0.99, "span_max_words": 3},
            {"span_p": 1.0, "mask_share": 0.0, "random_share": 1.0},
        )
    ):
        for length, size in ((8, 40), (33, 700), (128, 300), (512, 40)):
            ids, starts = pinned_rows(size, length, seed)
            masked = mask_rows(
                ids, starts, np.arange(size) * 10**9 + 3, np.arange(size) // 7,
                seed=seed - 1, vocabulary=vocabulary, config=settings(strategy, **changes),
                version=version,
            )  # fmt: skip
            for field in fields(masked):
                digest.update(np.asarray(getattr(masked, field.name)).astype("<i8").tobytes())
    assert digest.hexdigest() == PINNED[strategy, version]


def test_masking_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import fitb.data.masking, fitb.data.order"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
