"""Near-duplicates against the exact Jaccard similarity, step by step."""

import itertools
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from duplicates import jaccard

from fitb.base.errors import DataError
from fitb.corpus import minhash
from fitb.corpus.minhash import (
    NUM_HASHES,
    bands,
    cluster,
    find_pairs,
    removed,
    signatures,
    write_signatures,
)

WORDS = [f"word{number}" for number in range(5000)]


def deduplicate(folder, shards, threshold=0.8, order=1):
    """All steps over shards of texts, as separate tasks; return the counts and what is gone."""
    for number, texts in list(enumerate(shards))[::order]:
        write_signatures(folder, number, signatures(texts), threshold)
    for bucket in range(bands(threshold)[0])[::order]:
        find_pairs(folder, bucket, threshold)
    counts = cluster(folder, threshold)
    return counts, [removed(folder, number).tolist() for number in range(len(shards))]


def random_text(draw, num_words):
    return " ".join(draw.choices(WORDS, k=num_words))


@pytest.fixture(scope="module")
def planted():
    """Pairs of a text and a copy, in which words are replaced, and their exact similarity."""
    draw, found = random.Random(1), []
    for wanted in [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0] * 60:
        text = random_text(draw, draw.randint(80, 400))
        copy = text.split()
        while (similarity := jaccard(text, " ".join(copy))) > wanted:
            copy[draw.randrange(len(copy))] = draw.choice(WORDS)
        found.append((text, " ".join(copy), similarity))
    return found


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_planted_copies_are_found_by_their_similarity(planted, tmp_path, threshold):
    """The estimate has a deviation of 0.02: beyond 0.05 from the threshold hardly any is wrong."""
    originals, copies, similarity = zip(*planted, strict=True)
    counts, gone = deduplicate(tmp_path, [originals, copies], threshold)
    assert gone[0] == []
    found = np.zeros(len(copies), dtype=bool)
    found[gone[1]] = True
    exact = np.array(similarity)
    assert found[exact >= threshold + 0.05].mean() >= 0.99
    assert found[exact < threshold - 0.05].mean() <= 0.01
    assert found[exact == 1].all()
    assert counts == (found.sum(), found.sum())


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0])
def test_buckets_share_99_of_100_pairs_at_the_threshold(threshold):
    buckets, hashes = bands(threshold)
    assert 1 <= buckets <= 20 and buckets * hashes <= NUM_HASHES
    assert 1 - (1 - threshold**hashes) ** buckets >= 0.99


HASHED = """
import hashlib
from fitb.corpus.minhash import signatures
texts = ["one two three four five six", "a b", "", "\u6211\u4eec caf\u00e9 x_y"]
digest = hashlib.sha256(signatures(texts).tobytes()).hexdigest()
"""


def test_signatures_are_the_same_in_processes_with_other_hash_seeds():
    exec(HASHED, here := {})
    for seed in ("0", "1", "random"):
        command = [sys.executable, "-c", f"{HASHED}print(digest)"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        assert subprocess.check_output(command, env=environment, text=True).split() == [
            here["digest"]
        ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("लड़का अच्छा है", "लड़की अच्छी है"),  # the boy, the girl is good
        ("कि की कु", "का को कौ"),
        ("க கா கி", "கீ கு கூ"),
        ("שָׁלוֹם לְכֻלָּם", "שִׁלּוּם לְכַלֵּם"),
    ],
)
def test_marks_are_part_of_words(one, other):
    """`\\w` of the standard library takes them for spaces: different texts were equal."""
    first, second = signatures([one, other])
    assert (first == second).mean() < 0.1


def test_few_words_are_one_shingle_and_none_is_never_a_duplicate(tmp_path):
    shards = [["one two", "", "one two three", "!?"], ["One two.", "...", "two one", "", "one two"]]
    counts, gone = deduplicate(tmp_path, shards)
    assert gone == [[], [0, 4]]
    assert counts == (2, 1)


def test_words_of_a_long_text_are_the_same_whatever_the_block(monkeypatch):
    draw = random.Random(3)
    texts = [random_text(draw, number) for number in (1, 4, 5, 6, 7, 12, 13, 100)]
    at_once = signatures(texts)
    for block in (1, 2, 3, 7):
        monkeypatch.setattr(minhash, "_BLOCK_WORDS", block)
        assert np.array_equal(signatures(texts), at_once)


def test_the_first_of_a_cluster_stays_in_whatever_order_shards_are_written(tmp_path):
    draw = random.Random(4)
    kinds = [random_text(draw, 60) for _ in range(30)]
    shards = [[draw.choice(kinds) for _ in range(25)] for _ in range(5)]
    places = [(n, ordinal) for n in range(5) for ordinal in range(25)]
    flat = list(itertools.chain(*shards))
    expected = [[] for _ in shards]
    for place, (number, ordinal) in enumerate(places):
        if flat[place] in flat[:place]:
            expected[number].append(ordinal)
    for order in (1, -1):
        assert deduplicate(tmp_path / str(order), shards, order=order)[1] == expected


@pytest.mark.parametrize("block_bytes", [1, 2000, 1 << 26])
def test_candidates_are_neighbours_in_one_sorted_list_whatever_the_block(
    tmp_path, monkeypatch, block_bytes
):
    monkeypatch.setattr(minhash, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(minhash, "_SAMPLED", 3)
    draw = np.random.default_rng(6)
    shards = [draw.integers(0, 2, (n, NUM_HASHES)).astype(np.uint32) for n in (90, 0, 130, 1)]
    for number, sigs in enumerate(shards):
        write_signatures(tmp_path, number, sigs, 0.8)
    num_hashes = bands(0.8)[1]
    find_pairs(tmp_path, 0, 0.8)
    found = np.fromfile(minhash.pairs_of(tmp_path, 0), "<u4").reshape(-1, 4).tolist()
    records = sorted(
        (sigs[row, :num_hashes].tolist(), number, row)
        for number, sigs in enumerate(shards)
        for row in range(len(sigs))
    )
    alike = [pair for pair in itertools.pairwise(records) if pair[0][0] == pair[1][0]]
    assert found == [[*one[1:], *other[1:]] for one, other in alike]
    assert len(found) > 50


def test_a_pair_joined_through_a_third_is_one_cluster():
    """Against a naive search, on random pairs: chains, stars and pairs given twice."""
    draw = np.random.default_rng(5)
    for number, pairs in ((1, 0), (2, 1), (50, 20), (50, 60), (400, 300)):
        a, b = draw.integers(0, number, (2, pairs))
        expected = np.arange(number)
        for _ in range(number):
            for x, y in zip(a, b, strict=True):
                expected[[x, y]] = min(expected[x], expected[y])
        assert np.array_equal(minhash._roots(number, a, b), expected)
    chain = np.arange(1999)
    for a, b in ((chain, chain + 1), (chain[::-1] + 1, chain[::-1]), (np.full(1999, 1999), chain)):
        assert not minhash._roots(2000, a, b).any()


@pytest.fixture
def done(tmp_path):
    folder = tmp_path / "done"
    deduplicate(folder, [["a b c d e f", "g"], ["a b c d e f"]])
    return folder, lambda: cluster(folder, 0.8)


def test_missing_and_cut_off_pairs_are_errors_that_name_the_file(done):
    folder, again = done
    again()
    path = folder / "pairs" / "00003.pairs"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="00003.pairs is cut off: 15 bytes.*start again"):
        again()
    path.unlink()
    with pytest.raises(DataError, match="00003.pairs is missing; start again"):
        again()
    assert removed(folder, 1).tolist() == [0]  # the lists of before are whole


def test_lists_of_an_earlier_clustering_do_not_stay(done):
    folder, again = done
    for path in (folder / "pairs").glob("*.pairs"):
        path.write_bytes(b"")
    again()
    assert removed(folder, 1).size == 0
    shutil.rmtree(folder / "removed")
    with pytest.raises(DataError, match="holds no clusters; start again"):
        removed(folder, 1)


def test_what_a_killed_writer_leaves_among_the_buckets_is_not_read(tmp_path):
    code = (
        "import os, sys, pathlib\n"
        "from fitb.corpus import minhash\n"
        "os.fsync = lambda handle: os._exit(9)\n"
        "sigs = minhash.signatures(['a b c d e f'] * 2)\n"
        "minhash.write_signatures(pathlib.Path(sys.argv[1]), 0, sigs, 0.8)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert killed.returncode == 9
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    assert deduplicate(tmp_path, [["a b c d e f"] * 2])[0] == (1, 1)  # it is written again
