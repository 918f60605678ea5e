"""Folders of runs, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import CONFIG, events, record


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a finished run of 40 steps; a file that is None is left out, text is taken as it is."""

    def write(name: str = "run", **files: Any) -> Path:
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        contents = {
            "metrics": [record(step) for step in range(1, 41)],
            "events": events(),
            "config": CONFIG,
            "provenance": [
                {"attempt": 1, "commit": "c" * 40, "diff": "", "hosts": ["a1"]},
                {"attempt": 2, "commit": "d" * 40, "diff": "+x\n", "hosts": ["a1", "b2"]},
            ],
        } | files
        ends = {"metrics": ".jsonl", "events": ".jsonl", "config": ".yaml", "provenance": ".json"}
        for key, content in contents.items():
            if content is None:
                continue
            if not isinstance(content, str) and key in ("metrics", "events"):
                content = "".join(f"{json.dumps(line)}\n" for line in content)
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / f"{key}{ends[key]}").write_text(text)
        return folder

    return write
