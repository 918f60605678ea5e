"""Order, split and identity of documents depend on their text only, whatever the input splits."""

import random

import numpy as np
import pytest

from fitb.base.errors import DataError
from fitb.corpus.sorted_runs import SPLITS, Totals, gather, split_of, text_digest, write_run


def runs_of(folder, texts, *, seed=0, splits=1, block_bytes=10000, fraction=0.2):
    """Write texts as runs; a text's place is its number in the list."""
    folder.mkdir()
    total, paths = Totals(), []
    for split in range(splits):
        path = folder / f"{split:05d}.run"
        numbered = [(0, place, text) for place, text in enumerate(texts)][split::splits]
        kept = write_run(
            path, numbered, seed=seed, validation_fraction=fraction, block_bytes=block_bytes
        )
        paths.append(path)
        total.documents += kept.documents
        total.bytes += kept.bytes
        total.digest_sum = (total.digest_sum + kept.digest_sum) % 2**256
    return paths, total


def all_of(paths, split, shards=1):
    parts = [gather(paths, split, number, shards) for number in range(shards)]
    return [text for part in parts for text in part.texts.to_pylist()]


@pytest.mark.parametrize(("splits", "block_bytes", "shards"), [(1, 10, 3), (5, 300, 1), (7, 9, 8)])
def test_splits_blocks_and_shards_leave_no_trace_in_the_order(
    tmp_path, texts, splits, block_bytes, shards
):
    shuffled = random.Random(0).sample(texts, len(texts))
    plain, kept = runs_of(tmp_path / "a", texts)
    cut, kept_too = runs_of(tmp_path / "b", shuffled, splits=splits, block_bytes=block_bytes)
    assert kept == kept_too
    for split in SPLITS:
        found = all_of(plain, split)
        assert found == all_of(cut, split, shards)
        assert kept.documents[split] == len(found)
        assert kept.bytes[split] == sum(len(text.encode()) for text in found)
    found = [text for split in SPLITS for text in all_of(cut, split, shards)]
    assert sorted(found) == sorted(texts)


def test_equal_texts_meet_and_the_first_place_stays(tmp_path, texts):
    several = [*texts[:50], *texts[20:40], texts[3]]
    paths, _ = runs_of(tmp_path / "a", several, splits=4, block_bytes=100)
    for shards in (1, 6):
        parts = [gather(paths, split, n, shards) for split in SPLITS for n in range(shards)]
        places = [place for part in parts for place in part.place.tolist()]
        again = [pair for part in parts for pair in part.duplicates.tolist()]
        assert sorted(places) == list(range(50))
        assert sorted(again) == [[0, place] for place in range(50, 71)]


def test_a_seed_changes_the_order_but_neither_split_nor_fingerprint(tmp_path, texts):
    first, kept = runs_of(tmp_path / "a", texts, seed=0)
    second, kept_too = runs_of(tmp_path / "b", texts, seed=-7)
    assert kept == kept_too
    assert all_of(first, "train") != all_of(second, "train")
    assert set(all_of(first, "train")) == set(all_of(second, "train"))


def test_the_validation_share_is_near_its_setting_and_grows_with_it():
    digests = [text_digest(str(number)) for number in range(5000)]
    small = {digest for digest in digests if split_of(digest, 0.1) == "validation"}
    large = {digest for digest in digests if split_of(digest, 0.3) == "validation"}
    assert abs(len(small) / 5000 - 0.1) < 0.02
    assert small < large


def test_documents_can_be_left_out_and_picked(tmp_path, texts):
    paths, _ = runs_of(tmp_path / "a", texts[:30])
    documents = gather(paths, "train", 0, 1)
    gone = np.array([0, 3, len(documents) - 1])
    left, picked = documents.without(gone), documents.only(gone)
    assert picked.place.tolist() == documents.place[gone].tolist()
    assert {*picked.place, *left.place} == {*documents.place}
    for part in (left, picked):
        assert part.texts.to_pylist() == [texts[place] for place in part.place]


def test_an_interrupted_run_leaves_no_file(tmp_path):
    def documents():
        yield 0, 0, "one"
        raise KeyboardInterrupt

    path = tmp_path / "00000.run"
    with pytest.raises(KeyboardInterrupt):
        write_run(path, documents(), seed=0, validation_fraction=0.5, block_bytes=1)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_run_is_named(tmp_path, texts):
    paths, _ = runs_of(tmp_path / "a", texts)
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    with pytest.raises(DataError, match=f"{paths[0].name} is damaged"):
        gather(paths, "train", 0, 1)
