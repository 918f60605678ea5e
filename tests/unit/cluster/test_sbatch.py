"""Options of sbatch, wherever they stand."""

from __future__ import annotations

import pytest

from fitb.cluster.sbatch import hosts_and_tasks, read_options, values

SCRIPT = """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --requeue   # and come back
#SBATCH -J 'my job' --time 04:00:00
date
"""
ENV = {"SBATCH_TIMELIMIT": "1", "SBATCH_PARTITION": "a b", "SBATCH_NO_KILL": "", "HOME": "x"}


def test_words_win_over_the_environment_and_that_over_the_script():
    found = read_options(SCRIPT, ENV, ["-N4", "-p", "low", "--signal", "B:USR1@30", "-H"])
    assert [(option.name, option.value, option.source) for option in found.values()] == [
        ("nodes", "4", "sbatch"),
        ("requeue", None, "#SBATCH"),
        ("job-name", "my job", "#SBATCH"),
        ("time", "1", "SBATCH_TIMELIMIT"),
        ("no-kill", None, "SBATCH_NO_KILL"),
        ("partition", "low", "sbatch"),
        ("signal", "B:USR1@30", "sbatch"),
        ("hold", None, "sbatch"),
    ]
    assert read_options(SCRIPT, ENV)["partition"].value == "a b"


def test_a_variable_that_sbatch_does_not_know_is_no_option():
    assert values(read_options(SCRIPT, {"SBATCH_NODES": "9"}))["nodes"] == "2"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], (1, 1)),
        (["--nodes=3-5", "--ntasks-per-node=4"], (3, 4)),
        (["-N2", "-n", "7"], (2, 4)),
        (["--ntasks=many"], (1, 1)),
    ],
)
def test_hosts_and_tasks_are_the_least_that_a_job_gets(words, found):
    assert hosts_and_tasks(values(read_options(words=words))) == found
