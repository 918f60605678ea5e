"""Figures are those of the process tree and of the runs, not of the one who asks."""

from __future__ import annotations

import sys

import pytest

from fitb.base.errors import SystemFault
from fitb.bench.timing import peak_mb, ratios, render, spread


def test_a_spread_is_the_median_and_both_ends():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2, "low": 1, "high": 3, "runs": 3}
    assert ratios([6.0, 1.0], [2.0, 1.0]) == {"median": 2, "low": 1, "high": 3, "runs": 2}
    assert render({"a": {"b": spread([1.0])}}).split(maxsplit=1) == ["a.b", "1 (1 to 1, 1 runs)"]


def test_the_memory_of_a_command_is_that_of_its_children_too_without_mapped_files(
    tmp_path,
):
    """Two children hold 100 MB each, and read a file of 200 MB through a mapping."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 200_000_000)
    hold = f"import mmap, time; held = b'x' * 100_000_000; file = open({str(path)!r}, 'rb')\n"
    hold += "m = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); m.find(b'y'); time.sleep(1)"
    code = f"import subprocess, sys; c = [sys.executable, '-c', {hold!r}]\n"
    code += "both = [subprocess.Popen(c) for _ in range(2)]; [one.wait() for one in both]"
    assert 200 < peak_mb([sys.executable, "-c", code]) < 300


def test_a_command_that_fails_is_named_with_its_last_words():
    with pytest.raises(SystemFault, match="ended with 1: .*NameError"):
        peak_mb([sys.executable, "-c", "nonsense"])
