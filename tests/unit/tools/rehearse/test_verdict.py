"""Leads against what was measured, and options as sbatch takes them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fitb.base.errors import ConfigError
from fitb.cluster.slurm_config import Finding
from fitb.tools.rehearse.rehearsal import (
    choose_script,
    elapsed_s,
    launcher_arguments,
    rehearse,
    sbatch_options,
)
from fitb.tools.rehearse.verdict import (
    Inputs,
    Rehearsal,
    Shutdown,
    exit_code,
    grace_periods,
    render,
)

LIMIT = Shutdown("time limit", "SIGUSR1", 12, 2.0, 5.0, 3.0, 20.0, {}, 0)
PREEMPTED = replace(LIMIT, end="preemption", signal="SIGTERM")
GIVEN = Inputs(limit_s=300.0, attempt_s=14_400.0, preemption_s=30.0, preemption="KillWait")


def verdicts(given):
    return [lead.suffices for lead in grace_periods([LIMIT, PREEMPTED], given)]


def test_a_lead_suffices_from_three_times_what_was_needed():
    assert verdicts(GIVEN) == [True, True]
    assert verdicts(replace(GIVEN, limit_s=15.0, preemption_s=6.0)) == [True, True]
    assert verdicts(replace(GIVEN, limit_s=14.9, preemption_s=5.9)) == [False, False]
    given = replace(GIVEN, preemption_s=10.0)
    assert verdicts(given) == [True, True]  # Slurm requeues it; else it must have left by then
    assert verdicts(replace(given, requeues=False)) == [True, False]


def test_no_preemption_needs_no_lead_and_no_signal_or_a_late_limit_is_never_enough():
    assert verdicts(replace(GIVEN, preemption_s=None)) == [True, True]
    for wrong, remedy in (
        ({"limit_s": None}, "--signal=B:USR1@300"),
        ({"attempt_s": 240}, "--time"),
    ):
        (short, _) = grace_periods([LIMIT, PREEMPTED], replace(GIVEN, **wrong))
        assert not short.suffices and remedy in short.sentence


def test_reasons_are_lost_steps_short_leads_and_what_the_site_forbids():
    sites = [Finding("KillWait", "5 sec", "warn", "known"), Finding("Requeue", "0", "bad", "no")]
    ends = [replace(LIMIT, steps_lost=7), PREEMPTED]
    short = grace_periods(ends, replace(GIVEN, preemption_s=3.0))
    found = Rehearsal("run", "job 4", ends, short, sites)
    assert found.reasons == [
        "7 steps were lost at the time limit", short[1].sentence, "Requeue=0: no"
    ]  # fmt: skip
    assert not short[1].suffices and "KillWait gives 3 s, 1.5 times" in short[1].sentence
    assert render(found).endswith("\n".join(f"  {reason}" for reason in found.reasons))
    good = replace(found, leaves=[LIMIT, PREEMPTED], leads=grace_periods(ends, GIVEN), site=[])
    assert (good.reasons, exit_code(good), exit_code(found)) == ([], 0, 1)


def test_a_clock_of_a_host_is_believed_only_where_it_can_be_right():
    assert elapsed_s(100.0, [102.5, 103.0], 104.0) == 2.5
    assert elapsed_s(100.0, [99.0, 103.0], 104.0) == 3.0  # a save before the signal
    assert elapsed_s(100.0, [40.0, 41.0], 104.0) == 4.0  # clocks a minute apart
    assert elapsed_s(100.0, [], 104.0) == 4.0


@pytest.mark.parametrize("word", ["--wait", "-W", "--array=0-3", "--wrap=ls", "-H", "--test-only"])
def test_a_job_that_cannot_be_rehearsed_is_refused(word):
    script = choose_script(None)
    assert script is not None
    assert sbatch_options(script.read_text(), {}, [])["signal"] == "B:USR1@300"
    with pytest.raises(ConfigError, match="cannot be rehearsed"):
        sbatch_options(script.read_text(), {}, [word])


def test_where_flags_and_training_flags_may_be_mixed_or_parted():
    flags = ["--steps", "9", "--config", "tinybert4"]
    for args in (
        ["--sbatch", "--nodes=2", "--minutes", "5", "--", *flags],
        [*flags, "--minutes=5", "--sbatch=--nodes=2"],
    ):
        where, training = launcher_arguments().split(args)
        assert (where.sbatch, where.minutes, training) == (["--nodes=2"], 5.0, flags)
    where, _ = launcher_arguments().split(["--sbatch", "--nodes=2 -p low", "--sbatch", "--time=60"])
    assert where.sbatch == ["--nodes=2 -p low", "--time=60"]


def test_a_rehearsal_leaves_other_folders_alone_and_checks_the_flags_first(tmp_path):
    (tmp_path / "run-rehearsal").mkdir()
    (tmp_path / "run-rehearsal" / "here").touch()
    for words, said in (
        (["--run_dir", f"{tmp_path}/run"], "run-rehearsal is not empty"),
        (["--rehearsal_dir", f"{tmp_path}/new", "--stepz", "3"], "nearest: steps"),
        (["--cluster=local", "--processes=300", f"--run_dir={tmp_path}/new"], "300 processes"),
    ):
        with pytest.raises(ConfigError, match=said):
            rehearse(*launcher_arguments().split(words))
    assert [path.name for path in tmp_path.iterdir()] == ["run-rehearsal"]
