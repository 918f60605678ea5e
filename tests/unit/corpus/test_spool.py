"""Order, split and identity of documents depend on their text only."""

from __future__ import annotations

import random
from pathlib import Path

from fitb.corpus.dedupe import text_digest, unique
from fitb.corpus.old_sources import Document
from fitb.corpus.spool import Spool, split_of, spool


def spooled(folder: Path, texts: list[str], *, seed: int = 0, fraction: float = 0.2) -> Spool:
    folder.mkdir()
    documents = [Document("", text) for text in texts]
    return spool(documents, folder, seed=seed, validation_fraction=fraction)


def test_the_first_of_equal_texts_is_kept_in_place() -> None:
    found = list(unique(iter(["b", "a", "b", "c", "a"])))
    assert found == [(text_digest(text), text) for text in "bac"]


def test_order_split_and_fingerprint_do_not_depend_on_the_order_of_reading(
    tmp_path: Path, texts: list[str]
) -> None:
    shuffled = random.Random(0).sample(texts, len(texts))
    first = spooled(tmp_path / "a", texts)
    second = spooled(tmp_path / "b", shuffled)
    assert first.fingerprint == second.fingerprint
    for split in ("train", "validation"):
        assert list(first.texts(split)) == list(second.texts(split))
    assert sorted([*first.texts("train"), *first.texts("validation")]) == sorted(texts)


def test_a_seed_changes_the_order_but_neither_split_nor_fingerprint(
    tmp_path: Path, texts: list[str]
) -> None:
    first = spooled(tmp_path / "a", texts, seed=0)
    second = spooled(tmp_path / "b", texts, seed=-7)
    assert first.fingerprint == second.fingerprint
    assert list(first.texts("train")) != list(second.texts("train"))
    assert set(first.texts("train")) == set(second.texts("train"))


def test_a_text_stays_on_its_side_when_others_join(tmp_path: Path, texts: list[str]) -> None:
    few = spooled(tmp_path / "a", texts[:100])
    many = spooled(tmp_path / "b", texts)
    assert set(few.texts("validation")) <= set(many.texts("validation"))
    assert set(few.texts("train")) <= set(many.texts("train"))


def test_the_validation_share_is_near_its_setting_and_grows_with_it() -> None:
    digests = [text_digest(str(number)) for number in range(5000)]
    small = {digest for digest in digests if split_of(digest, 0.1) == "validation"}
    large = {digest for digest in digests if split_of(digest, 0.3) == "validation"}
    assert abs(len(small) / 5000 - 0.1) < 0.02
    assert small < large


def test_duplicates_and_empty_texts_are_counted(tmp_path: Path) -> None:
    found = spooled(tmp_path / "a", ["one two", "one\n two", "\x00 ", "three"])
    assert (sum(found.documents.values()), found.duplicates, found.empty) == (2, 1, 1)
