"""Folders of runs, written by hand."""

from __future__ import annotations

import pytest
from report_runs import CONFIG, events, record
from run_folder import write_run


@pytest.fixture
def write(tmp_path):
    """Write a finished run of 40 steps; a file that is None is left out, text is taken as it is."""
    finished = {
        "metrics": [record(step) for step in range(1, 41)],
        "events": events(),
        "config": CONFIG,
        "provenance": [
            {"attempt": 1, "commit": "c" * 40, "diff": "", "hosts": ["a1"]},
            {"attempt": 2, "commit": "d" * 40, "diff": "+x\n", "hosts": ["a1", "b2"]},
        ],
    }
    return lambda name="run", **files: write_run(tmp_path / name, **(finished | files))
