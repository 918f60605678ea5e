"""Each rank hashes what it reads: other bytes on one of them end all, and nothing is trained."""

from __future__ import annotations

import json
import sys
from typing import Any

import job
import other_bytes
import pytest
from small import quick

from fitb.cluster.local import LocalRun

Answers = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(shards, teacher, tmp_path_factory):
    """Where both ranks have written down how each case ended."""
    if not other_bytes.may_mount():
        pytest.skip("a mount namespace needs root")
    folder = tmp_path_factory.mktemp("bytes")
    flags = quick(shards, teacher, steps=2, checkpoint_every=2, eval_every=2)
    words = [other_bytes.__file__, str(folder), str(shards), str(teacher), *flags]
    with LocalRun([sys.executable, *words], 2) as ranks:
        ranks.wait(job.TIMEOUT_S)
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    """Of each case, what rank 0 and rank 1 said."""
    found: Answers = {}
    for rank in (0, 1):
        for line in (folder / f"answers-{rank}.jsonl").read_text().splitlines():
            found.setdefault(json.loads(line)["case"], []).append(json.loads(line))
    return found


def ended(answers, case):
    """The code and the error of a case, which are the same on both ranks."""
    first, second = answers[case]
    assert first == second
    (error,) = first["errors"]
    return first["code"], error


READ = {
    "teacher": ("teacher",),
    "student": ("student",),
    "tokenizer": ("tokenizer", "fingerprint"),
    "manifest": ("manifest of",),
    "rows": ("manifest.json", "rows"),
    "settings of the teacher": ("teacher", "config.json"),
}


@pytest.mark.parametrize("case", READ)
def test_a_rank_that_reads_another_file_ends_all_with_an_error_that_a_restart_may_heal(
    answers, folder, case
):
    code, error = ended(answers, case)
    assert code == 1
    assert all(word in error for word in (*READ[case], "rank 1 on", "Start again"))
    assert job.steps(folder / case) == job.events(folder / case, "save") == []


@pytest.mark.parametrize("case", ["validation", "shards"])
def test_a_shard_that_one_rank_finds_damaged_is_named_by_all_and_no_step_is_made(
    answers, folder, case
):
    code, error = ended(answers, case)
    assert code == 93
    assert ".arrow is damaged: expected sha256" in error and "fitb prepare" in error
    assert job.steps(folder / case) == job.events(folder / case, "save") == []
    assert not list((folder / case / "checkpoints").glob("step-*"))


def test_a_rank_that_reads_another_checkpoint_than_rank_0_verified_ends_all(answers, folder):
    code, error = ended(answers, "checkpoint")
    assert code == 1
    assert all(
        word in error for word in ("state-00001-of-00002", "has sha256", "rank 1 on", "Start again")
    )
    assert not list((folder / "run" / "checkpoints").glob("*.bad*"))  # rank 0 found it good


def test_ranks_that_evaluate_different_weights_give_no_number(answers):
    code, error = ended(answers, "evaluated")
    assert code == 4 and "model" in error and "rank 1 on" in error
    assert [(each["code"], each["errors"]) for each in answers["evaluated well"]] == [(0, [])] * 2


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again_until_they_are_back(answers, folder):
    code, error = ended(answers, "purged")
    assert code == 93
    assert all(word in error for word in ("saved step 2", "Restore", "--run_dir", "mv "))
    assert [each["code"] for each in answers["restored"]] == [0, 0]
    assert job.steps(folder / "run") == [1, 2]
    assert [event["step"] for event in job.events(folder / "run", "save")] == [2]
