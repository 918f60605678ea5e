"""The table of the ablation against naive means and a known interval."""

import argparse
import statistics
from pathlib import Path

import numpy as np
import pytest
from ablate import all_runs, row_of
from ablate_grids import GRIDS, OLD

from fitb.evaluation.row_counts import COLUMNS, RowCounts


def counts(right):
    """Five groups of rows in four documents, 100 masked positions each."""
    sums = np.zeros((4, 5, len(COLUMNS)))
    sums[:, :, COLUMNS.index("num_slots")] = sums[:, :, COLUMNS.index("num_words")] = 100
    sums[:, :, COLUMNS.index("top1")] = np.array(right)[:, None]
    return RowCounts(np.arange(4), np.arange(4), sums)


def test_differences_are_paired_by_seed_with_students_interval():
    first = {seed: (counts([20, 30, 40, 50]), 2.0) for seed in (0, 1, 2)}
    mine = {seed: (counts([22 + seed, 31 + seed, 43 + seed, 52 + seed]), 3.0) for seed in (0, 1, 2)}
    row = row_of(mine, first)
    gaps = [0.02, 0.03, 0.04]
    half = 4.3027 * statistics.stdev(gaps) / 3**0.5
    assert row["difference"] == pytest.approx(0.03) and row["flops"] == 3.0
    assert row["over_seeds"] == pytest.approx([0.03 - half, 0.03 + half], rel=1e-3)
    low, high = row["over_documents"]
    assert 0.02 <= low < 0.03 < high <= 0.04  # of documents: 0.02 to 0.04


def test_a_setting_of_equal_compute_has_its_own_steps_and_no_flag_for_that():
    args = argparse.Namespace(out=Path("o"), grid="default", steps=300, seeds=[4], only=[])
    runs = {run.name: run for run in all_runs(args)}
    assert runs.keys() == GRIDS["default"].keys() and "random start, old masks" in runs
    longer = runs["mlm alone, equal compute"].flags
    assert longer[longer.index("--steps") + 1] == "549" and "--times_steps" not in longer
    old = runs["random start, old masks"].flags
    assert {f"--{key}" for key in OLD} <= set(old)
    assert old[old.index("--algorithms.masks") + 1] == "2"
