"""Planted near-duplicates: what is asked of the search is counted, not estimated."""

from __future__ import annotations

import pytest

from fitb.bench.duplicates import BenchConfig, bench, edited, jaccard, render
from fitb.errors import ConfigError


def test_similarity_is_shared_shingles_over_all_shingles() -> None:
    assert jaccard("a b c d e f", "a b c d e f") == 1
    assert jaccard("a b c d e f", "A b, c d e g") == pytest.approx(1 / 3)
    assert jaccard("a b c d e", "v w x y z") == 0


def test_copies_are_edited_from_not_at_all_to_beyond_recognition() -> None:
    text = " ".join(f"word{number}" for number in range(200))
    exact = [jaccard(text, edited(text, number, 0)) for number in range(300)]
    assert exact[0] == 1 and min(exact) < 0.55
    assert sum(0.75 < value < 0.85 for value in exact) > 20


def test_recall_and_precision_are_high_and_far_copies_stay() -> None:
    table = (result := bench(BenchConfig(pairs=600, thresholds=[0.8])))["thresholds"][0]
    assert table["recall"] >= 0.9 and table["precision"] >= 0.9
    by_similarity = {row["similarity"]: row for row in table["by_similarity"]}
    assert by_similarity["1"]["pairs"] == 60
    assert by_similarity["1"]["found"] == by_similarity["0.875 to 1"]["found"] == 1
    assert by_similarity["0 to 0.725"]["found"] == 0
    assert sum(row["pairs"] for row in table["by_similarity"]) == 600
    assert "threshold 0.8: recall 0.9" in render(result)


def test_a_threshold_that_makes_candidates_of_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="jaccard=0.2"):
        BenchConfig(thresholds=[0.2])
