"""Masks against a loop that goes token by token, and what they may never depend on."""

import hashlib
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

from fitb.base import rng
from fitb.config import MaskConfig
from fitb.data.masking import IGNORE_INDEX, Vocabulary, _span_lengths, mask_rows

STRATEGIES = ("token", "whole_word", "span")
SEED = 5
CHOICE, SHOWN, DRAWN, LENGTH = 11, 12, 13, 14  # pinned: another number is another mask


def settings(strategy, **changes):
    return MaskConfig(strategy=strategy, **changes)


def masked(rows, numbers, epochs, vocabulary, config, **version):
    where = np.asarray(numbers, np.int64), np.asarray(epochs, np.int64)
    return mask_rows(
        rows.input_ids,
        rows.word_starts,
        *where,
        seed=SEED,
        vocabulary=vocabulary,
        config=config,
        **version,
    )


def words_of(ids, starts, vocabulary):
    """Lists of places, one for each word that begins in the row."""
    words = []
    for place, token in enumerate(ids):
        if starts[place]:
            words.append([])
        if words and token not in vocabulary.special_ids:
            words[-1].append(place)
    return words


def length_at(u, p, longest):
    """The length at a share of a geometric distribution among 1 .. longest."""
    shares = [p * (1 - p) ** (length - 1) for length in range(1, longest + 1)]
    for length in range(1, longest):
        u -= shares[length - 1] / sum(shares)
        if u < 0:
            return length
    return longest


def naive_choice(words, most, config, key):
    """Places of a row's slots, found one word after the other."""
    ordinary = sum(words, [])
    left = min(max(round(config.fraction * len(ordinary)), min(1, len(ordinary))), most)
    hashed = {place: int(rng.keyed(SEED, CHOICE, *key, place)) for place in ordinary}
    if config.strategy == "token":
        return sorted(sorted(ordinary, key=hashed.get)[:left])
    taken = set()
    order = sorted(range(len(words)), key=lambda number: hashed[words[number][0]])
    for i, first in enumerate(order):
        length = 1
        if config.strategy == "span":
            u = float(rng.uniform(SEED, LENGTH, *key, i))
            length = length_at(u, config.span_p, config.span_max_words)
        for number in range(first, min(first + length, len(words))):
            if number in taken:
                continue
            if len(words[number]) > left:
                break
            taken.add(number)
            left -= len(words[number])
    return sorted(place for number in taken for place in words[number])


def naive_row(ids, starts, vocabulary, config, key):
    """What mask_rows gives for a row."""
    words = words_of(ids, starts, vocabulary)
    number_of = {place: number for number, word in enumerate(words) for place in word}
    most = max(1, round(config.fraction * (len(ids) - 2)))
    places = naive_choice(words, most, config, key)
    pool = [token for token in range(vocabulary.size) if token not in vocabulary.special_ids]
    shown = list(ids)
    for place in places:
        u = float(rng.uniform(SEED, SHOWN, *key, place))
        if u < config.mask_share:
            shown[place] = vocabulary.mask_id
        elif u < config.mask_share + config.random_share:
            drawn = float(rng.uniform(SEED, DRAWN, *key, place))
            shown[place] = pool[int(drawn * len(pool))]
    unused = most - len(places)
    return {
        "input_ids": shown,
        "attention_mask": [int(token != vocabulary.pad_id) for token in ids],
        "slots": places + [0] * unused,
        "labels": [ids[place] for place in places] + [IGNORE_INDEX] * unused,
        "slot_words": [number_of[place] for place in places] + [-1] * unused,
    }


SPANS = ((0.05, 10), (0.5, 3), (0.99, 10), (0.2, 1), (1.0, 10))
SHARES = {"fraction": 0.5, "mask_share": 0.5, "random_share": 0.3}


@pytest.mark.parametrize(
    "config",
    [
        *(settings(s, fraction=part) for s in STRATEGIES for part in (0.01, 0.15, 0.5, 0.9)),
        *(settings("span", span_p=p, span_max_words=most, fraction=0.4) for p, most in SPANS),
        *(settings(s, **SHARES) for s in STRATEGIES),
    ],
    ids=str,
)
def test_masked_rows_are_those_that_a_loop_over_words_finds(vocabulary, make_rows, config):
    """In version 2: of version 3 tells test_whole_words.py.

    Rows in part with the tail of a word that the row before cut, and with no word at all.
    """
    for length, longest in ((8, 2), (33, 6), (64, 3)):
        rows = make_rows(40, length, seed=length, longest_word=longest)
        rows.input_ids[4, 1:7], rows.word_starts[4] = [1, 1, 3, 3, 0, 0], False
        rows.input_ids[4, 7:] = 0
        before = rows.input_ids.copy()
        numbers, epochs = np.arange(40) * 7 + 3, np.arange(40) % 3
        batch = masked(rows, numbers, epochs, vocabulary, config, version=2)
        assert np.array_equal(rows.input_ids, before)
        assert {getattr(batch, f.name).dtype for f in fields(batch)} == {np.dtype(np.int64)}
        for row, key in enumerate(zip(epochs.tolist(), numbers.tolist(), strict=True)):
            ids, starts = rows.input_ids[row].tolist(), rows.word_starts[row].tolist()
            found = {f.name: getattr(batch, f.name)[row].tolist() for f in fields(batch)}
            assert found == naive_row(ids, starts, vocabulary, config, key)


@pytest.mark.parametrize("version", [1, 2])
def test_span_lengths_have_the_mean_and_the_longest_of_the_spanbert_paper(version):
    """In runs of before longer spans were clipped, and go on to be."""
    where = (np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
    lengths = _span_lengths(SEED, where, settings("span"), version)
    drawn = lengths(np.zeros(1, dtype=np.int64), np.arange(200_000))[0]
    law = np.array([0.2 * 0.8**i for i in range(10)])
    law[-1] += 0.8**10 if version == 1 else 0
    law *= len(drawn) / law.sum()
    counts = np.bincount(drawn, minlength=11)[1:]
    assert len(counts) == 10
    assert ((counts - law) ** 2 / law).sum() < 27.9  # 99.9 % of chi squared with 9 degrees
    assert drawn.mean() == pytest.approx(4.464 if version == 1 else 3.8, abs=0.02)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_rows_have_no_slots(vocabulary, make_rows, strategy):
    empty = masked(make_rows(0, 16), [], [], vocabulary, settings(strategy))
    assert empty.input_ids.shape == empty.attention_mask.shape == (0, 16)
    assert empty.slots.shape == empty.labels.shape == empty.slot_words.shape == (0, 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_has_the_same_mask_in_any_batch(vocabulary, make_rows, strategy):
    """Rows are masked in blocks; 700 rows of 64 tokens are more than one."""
    config, rows = settings(strategy, fraction=0.3), make_rows(700, 64)
    numbers, epochs = np.arange(700) * 7 + 3, np.arange(700) // 300
    whole = masked(rows, numbers, epochs, vocabulary, config)
    draw = np.random.default_rng(0)
    shuffled = [draw.permutation(700)[:size] for size in (2, 17, 700)]
    for some in ([0], [255], [256], [699], *shuffled):
        part = type(rows)(rows.input_ids[some], rows.word_starts[some])
        batch = masked(part, numbers[some], epochs[some], vocabulary, config)
        for field in fields(batch):
            assert np.array_equal(getattr(batch, field.name), getattr(whole, field.name)[some])


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
