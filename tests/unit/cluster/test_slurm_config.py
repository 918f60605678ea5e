"""What scontrol of several versions prints, read and judged."""

from __future__ import annotations

import pytest

from fitb.base.errors import ConfigError
from fitb.cluster import slurm, slurm_config

# Of a real 22.05.8, the lines that matter and some that do not.
CONFIG_22 = """\
Configuration data as of 2026-11-24T20:57:40
BOOT_TIME               = 2026-11-24T20:57:38
JobRequeue              = 1
KillWait                = 5 sec
OverTimeLimit           = 0 min
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
PreemptExemptTime       = 00:00:00
ProctrackType           = proctrack/linuxproc
RequeueExit             = (null)
SchedulerParameters     = batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SlurmctldParameters     = (null)
SLURM_VERSION           = 22.05.8
UnkillableStepTimeout   = 60 sec

Cgroup Support Configuration:
AllowedRAMSpace         = 100.0%

Slurmctld(primary) at fitb0c is UP
"""
PARTITIONS_22 = """\
PartitionName=low
   AllocNodes=ALL Default=YES QoS=N/A
   DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=25 Hidden=NO
   MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED
   OverTimeLimit=NONE PreemptMode=REQUEUE

PartitionName=high
   AllocNodes=ALL Default=NO QoS=N/A
   DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO
   OverTimeLimit=NONE PreemptMode=OFF
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


ALL_26 = "PartitionName=p Default=YES"


def partition_of(partitions, name):
    return slurm_config.choose_partition(slurm_config.parse_partitions(partitions), name)


@pytest.mark.parametrize(
    ("config", "partitions", "name", "job", "found"),
    [
        (CONFIG_22, PARTITIONS_22, None, "",
         "Slurm=22.05.8:ok; JobRequeue=1:ok; PreemptMode=REQUEUE:ok; GraceTime=25 s:ok;"
         " preempt_send_user_signal=off:ok; KillWait=5 sec:warn; ProctrackType=linuxproc:warn;"
         " MaxTime=UNLIMITED:ok; UnkillableStepTimeout=60 sec:ok"),
        (CONFIG_22, PARTITIONS_22, "high", "", "PreemptMode=OFF:ok; ..."),
        # It cancels, and takes our exit codes for its own.
        (CONFIG_20, PARTITIONS_20, "gpu", "JobId=7 Requeue=0 TimeLimit=1-00:00:00",
         "Slurm=20.11.9:ok; Requeue=0:bad; RequeueExit=1,80-95:bad; PreemptMode=CANCEL:bad;"
         " PreemptType=preempt/qos:warn; GraceTime=0:warn; preempt_send_user_signal=off:ok;"
         " KillWait=30 sec:ok; ProctrackType=cgroup:ok; MaxTime=2-00:00:00:ok;"
         " OverTimeLimit=10 min:ok; PreemptExemptTime=00:10:00:ok;"
         " UnkillableStepTimeout=180 sec:ok"),
        (CONFIG_20, PARTITIONS_20, "preempt,gpu", "JobId=7 TimeLimit=1-00:00:00",
         "JobRequeue=0:warn; PreemptMode=CANCEL:warn; MaxTime=08:00:00:bad;"
         " OverTimeLimit=5 min:ok; ..."),
        # It suspends, and sends the user's signal.
        (CONFIG_24, PARTITIONS_24, None, "Requeue=1 TimeLimit=Partition_Limit",
         "PreemptMode=SUSPEND:warn; preempt_send_user_signal=on:ok; Requeue=1:ok;"
         " MaxTime=04:00:00:ok; ..."),
        # It leaves settings out.
        (CONFIG_26, ALL_26, None, "",
         "Slurm=26.05.0:ok; JobRequeue=1:ok; PreemptMode=OFF:ok; KillWait=30 sec:ok;"
         " ProctrackType=pgid:warn; MaxTime=UNLIMITED:ok; UnkillableStepTimeout=60 sec:ok"),
    ],
)  # fmt: skip
def test_settings_of_every_version_are_told_with_what_they_do_to_a_job(
    config, partitions, name, job, found
):
    record = slurm.parse_record(job) if job else None
    settings = slurm_config.parse_config(config)
    told = slurm_config.findings(settings, partition_of(partitions, name), record)
    shown, expected = [f"{f.name}={f.value}:{f.verdict}" for f in told], found.split("; ")
    if expected[-1] == "...":  # and others
        assert set(expected[:-1]) <= set(shown)
    else:
        assert shown == expected


@pytest.mark.parametrize(
    ("config", "partitions", "name", "lead"),
    [
        (CONFIG_22, PARTITIONS_22, "low", (25.0, "GraceTime")),
        (CONFIG_22, PARTITIONS_22, "high", (None, "no preemption")),
        (CONFIG_20, PARTITIONS_20, "gpu", (30.0, "KillWait")),
        (CONFIG_20, PARTITIONS_20, "preempt", (300.0, "GraceTime")),
        (CONFIG_26, ALL_26, None, (None, "no preemption")),
    ],
)
def test_the_lead_of_a_preemption_is_the_grace_or_else_the_wait_before_the_kill(
    config, partitions, name, lead
):
    settings = slurm_config.parse_config(config)
    assert slurm_config.preemption_lead_s(settings, partition_of(partitions, name)) == lead


def test_a_partition_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'preemt' .* gpu, preempt \(nearest: preempt"):
        partition_of(PARTITIONS_20, "preemt")
    with pytest.raises(ConfigError, match="default; name one of gpu, preempt"):
        partition_of(PARTITIONS_20, None)


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
def test_durations_of_slurm_are_seconds(text, seconds):
    assert slurm_config.seconds(text) == seconds
    with pytest.raises(ConfigError, match="'soon'"):
        slurm_config.seconds("soon")
