"""What scontrol of several versions prints, read and judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitb.cluster import slurm
from fitb.cluster import slurm_config as site
from fitb.errors import ConfigError, SystemFault

# Of a real 22.05.8, the lines that matter and some that do not.
CONFIG_22 = """\
Configuration data as of 2026-11-24T20:57:40
AccountingStorageType   = accounting_storage/none
BOOT_TIME               = 2026-11-24T20:57:38
JobRequeue              = 1
KillWait                = 5 sec
LaunchParameters        = (null)
OverTimeLimit           = 0 min
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
PreemptExemptTime       = 00:00:00
ProctrackType           = proctrack/linuxproc
RequeueExit             = (null)
RequeueExitHold         = (null)
SchedulerParameters     = batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmctldParameters     = (null)
SLURM_VERSION           = 22.05.8
UnkillableStepProgram   = (null)
UnkillableStepTimeout   = 60 sec

Cgroup Support Configuration:
AllowedRAMSpace         = 100.0%

Slurmctld(primary) at fitb0c is UP
"""
PARTITIONS_22 = """\
PartitionName=low
   AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL
   AllocNodes=ALL Default=YES QoS=N/A
   DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=25 Hidden=NO
   MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED
   Nodes=fitb0h[1-2]
   PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO
   OverTimeLimit=NONE PreemptMode=REQUEUE
   State=UP TotalCPUs=128 TotalNodes=2 SelectTypeParameters=NONE

PartitionName=high
   AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL
   AllocNodes=ALL Default=NO QoS=N/A
   DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO
   MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED
   OverTimeLimit=NONE PreemptMode=OFF
   State=UP TotalCPUs=128 TotalNodes=2 SelectTypeParameters=NONE
"""
CONFIG_20 = """\
JobRequeue              = 0
KillWait                = 30 sec
OverTimeLimit           = 10 min
PreemptMode             = GANG,CANCEL
PreemptType             = preempt/qos
PreemptExemptTime       = 00:10:00
ProctrackType           = proctrack/cgroup
RequeueExit             = 1,80-95
SlurmctldParameters     = (null)
SLURM_VERSION           = 20.11.9
UnkillableStepTimeout   = 180 sec
"""
PARTITIONS_20 = """\
PartitionName=gpu AllocNodes=ALL Default=NO GraceTime=0 MaxTime=2-00:00:00 OverTimeLimit=NONE
PartitionName=preempt AllocNodes=ALL Default=NO GraceTime=300 MaxTime=08:00:00 OverTimeLimit=5
"""
CONFIG_24 = """\
JobRequeue              = 1
KillWait                = 30 sec
OverTimeLimit           = 0 min
PreemptMode             = GANG,SUSPEND
PreemptParameters       = send_user_signal,youngest_first
PreemptType             = preempt/partition_prio
PreemptExemptTime       = 00:00:00
ProctrackType           = proctrack/cgroup
RequeueExit             = (null)
SlurmctldParameters     = enable_configless
SLURM_VERSION           = 24.05.3
UnkillableStepTimeout   = 60 sec
"""
PARTITIONS_24 = "PartitionName=all\n   Default=YES GraceTime=120 MaxTime=04:00:00\n"
CONFIG_26 = """\
JobRequeue              = 1
KillWait                = 30 sec
PreemptMode             = OFF
PreemptParameters       = (null)
PreemptType             = (null)
PreemptExemptTime       = 00:00:00
ProctrackType           = proctrack/pgid
SLURM_VERSION           = 26.05.0
"""


def judged(config: str, partitions: str, name: str | None, job: str = "") -> list[str]:
    """Name=value:verdict of each finding."""
    partition = site.choose_partition(site.parse_partitions(partitions), name)
    record = slurm.parse_record(job) if job else None
    found = site.findings(site.parse_config(config), partition, record)
    return [f"{f.name}={f.value}:{f.verdict}" for f in found]


def test_a_real_22_05_that_requeues_what_it_preempts() -> None:
    assert judged(CONFIG_22, PARTITIONS_22, None) == [
        "Slurm=22.05.8:ok",
        "JobRequeue=1:ok",
        "PreemptMode=REQUEUE:ok",
        "GraceTime=25 s:ok",
        "preempt_send_user_signal=off:ok",
        "KillWait=5 sec:warn",
        "ProctrackType=linuxproc:warn",
        "MaxTime=UNLIMITED:ok",
        "UnkillableStepTimeout=60 sec:ok",
    ]
    assert "PreemptMode=OFF:ok" in judged(CONFIG_22, PARTITIONS_22, "high")


def test_a_20_11_that_cancels_and_takes_our_exit_codes_for_its_own() -> None:
    assert judged(CONFIG_20, PARTITIONS_20, "gpu", "JobId=7 Requeue=0 TimeLimit=1-00:00:00") == [
        "Slurm=20.11.9:ok",
        "Requeue=0:bad",
        "RequeueExit=1,80-95:bad",
        "PreemptMode=CANCEL:bad",
        "PreemptType=preempt/qos:warn",
        "GraceTime=0:warn",
        "preempt_send_user_signal=off:ok",
        "KillWait=30 sec:ok",
        "ProctrackType=cgroup:ok",
        "MaxTime=2-00:00:00:ok",
        "OverTimeLimit=10 min:ok",
        "PreemptExemptTime=00:10:00:ok",
        "UnkillableStepTimeout=180 sec:ok",
    ]
    found = judged(CONFIG_20, PARTITIONS_20, "preempt,gpu", "JobId=7 TimeLimit=1-00:00:00")
    assert {"JobRequeue=0:warn", "PreemptMode=CANCEL:warn", "MaxTime=08:00:00:bad"} <= set(found)
    assert "OverTimeLimit=5 min:ok" in found


def test_a_24_05_that_suspends_and_sends_the_users_signal() -> None:
    found = judged(CONFIG_24, PARTITIONS_24, None, "Requeue=1 TimeLimit=Partition_Limit")
    assert {"PreemptMode=SUSPEND:warn", "preempt_send_user_signal=on:ok"} <= set(found)
    assert {"Requeue=1:ok", "MaxTime=04:00:00:ok"} <= set(found)


def test_a_26_05_without_preemption_that_leaves_settings_out() -> None:
    assert judged(CONFIG_26, "PartitionName=p Default=YES", None) == [
        "Slurm=26.05.0:ok",
        "JobRequeue=1:ok",
        "PreemptMode=OFF:ok",
        "KillWait=30 sec:ok",
        "ProctrackType=pgid:warn",
        "MaxTime=UNLIMITED:ok",
        "UnkillableStepTimeout=60 sec:ok",
    ]


@pytest.mark.parametrize(
    ("config", "partitions", "name", "lead"),
    [
        (CONFIG_22, PARTITIONS_22, "low", (25.0, "GraceTime")),
        (CONFIG_22, PARTITIONS_22, "high", (None, "no preemption")),
        (CONFIG_20, PARTITIONS_20, "gpu", (30.0, "KillWait")),
        (CONFIG_20, PARTITIONS_20, "preempt", (300.0, "GraceTime")),
        (CONFIG_26, "PartitionName=p Default=YES", None, (None, "no preemption")),
    ],
)
def test_the_lead_of_a_preemption_is_the_grace_or_else_the_wait_before_the_kill(
    config: str, partitions: str, name: str | None, lead: tuple[float | None, str]
) -> None:
    partition = site.choose_partition(site.parse_partitions(partitions), name)
    assert site.preemption_lead_s(site.parse_config(config), partition) == lead


def test_a_partition_that_is_not_there_is_named_with_the_nearest() -> None:
    partitions = site.parse_partitions(PARTITIONS_20)
    with pytest.raises(ConfigError, match=r"'preemt' is not one of gpu, preempt \(nearest: pree"):
        site.choose_partition(partitions, "preemt")
    with pytest.raises(ConfigError, match="no partition is the default; name one of gpu, preempt"):
        site.choose_partition(partitions, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30 sec", 30.0),
        ("5 min", 300.0),
        ("300", 300.0),
        ("1-02:03:04", 93_784.0),
        ("04:00:00", 14_400.0),
        ("UNLIMITED", None),
        ("(null)", None),
    ],
)
def test_durations_of_slurm_are_seconds(text: str, seconds: float | None) -> None:
    assert site.seconds(text) == seconds


def test_a_duration_that_is_none_is_shown() -> None:
    with pytest.raises(ConfigError, match="'soon' is not a duration"):
        site.seconds("soon")


@pytest.mark.parametrize(
    ("option", "lead_s"),
    [("B:USR1@300", 300.0), ("USR2@90", 90.0), ("B:USR1", 60.0), (None, None)],
)
def test_the_lead_of_a_signal_is_read_as_sbatch_reads_it(
    option: str | None, lead_s: float | None
) -> None:
    assert site.signal_lead_s(option) == lead_s


def test_a_command_that_says_no_is_a_fault_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemFault, match="scontrol is not on PATH"):
        slurm.ask("scontrol", "show", "config")
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'no controller' >&2\nexit 3\n")
    (tmp_path / "scontrol").chmod(0o755)
    with pytest.raises(SystemFault, match="ended with 3: no controller"):
        slurm.ask("scontrol", "show", "config")
