"""SIGKILL after each single action of the commit protocol, on rank 0 and on another."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

BEFORE, AFTER = "1 [1.0] 6", "2 [2.0] 6"  # step, values of its tensors, how many
PROGRAM = Path(__file__).parent / "kill_points.py"


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def cases(lines):
    return [line for line in lines if "actor" in line]


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_after_a_kill_at_any_point_of_an_export_there_is_the_old_or_the_new_one_whole(lines, way):
    """A kill between two renames left no export, and the next start deleted the older one."""
    cases = [line for line in lines if line.get("way") == way]
    found = [case["found"] for case in cases]
    assert found == sorted(found) and {*found} == {1, 2}, cases
    assert all(len(case["left"]) == 1 for case in cases)  # the fence of the next attempt
    without = [case["action"] for case in cases if not case["between"]]
    assert without == ([] if way == "exchange" else ["rename"])
    actions = [case["action"] for case in cases]
    assert actions.count("fsync") >= 6 and actions[-1] == ""


def test_after_a_kill_at_any_point_all_ranks_resume_from_the_same_good_step(cases):
    for case in cases:
        assert case["chosen"][0] == case["chosen"][1], case
        assert case["chosen"][0] in (BEFORE, AFTER), case


def test_the_rename_of_the_folder_is_what_commits(cases):
    """Of rank 0 killed at its own points; another rank's kill may be survived by the commit."""
    points = {
        key: list(group)
        for key, group in itertools.groupby(cases, lambda case: (case["actor"], case["victim"]))
    }
    assert list(points) == [(0, 0), (0, 1), (1, 1)]
    for (actor, _), group in points.items():
        assert len(group) > (5 if actor else 12)
        chosen = [case["chosen"][0] for case in group]
        assert chosen == sorted(chosen) and {*chosen} == {BEFORE, AFTER}
        assert group[-1]["action"] == ""  # all points were met: nothing was left to kill after
    own = points[0, 0]
    first = next(i for i, case in enumerate(own) if case["chosen"][0] == AFTER)
    assert own[first]["action"] == "rename"
    assert sum(case["action"] == "fsync" for case in own[:first]) >= 4
