"""What the doctor makes of the settings and hosts of a Slurm, and of what a job asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitb.cluster.process import Output
from fitb.tools.doctor import job_request, slurm
from fitb.tools.doctor.job_request import JobRequest
from fitb.tools.doctor.slurm import Hosts

DISTILL = Path(__file__).resolve().parents[4] / "slurm" / "distill.sh"


@pytest.mark.parametrize(
    ("gres", "number", "option"),
    [
        ("(null)", 0, ""),
        ("gpu:4", 4, ""),
        ("gpu", 1, ""),
        ("gpu:a100:8(S:0-1)", 8, ""),
        ("gpu:a100:2(S:0),gpu:v100:1(S:1),tmp:100", 3, ""),
        ("shard:8,gpu:h100:4", 4, ""),
        ("gpu:1080:2(S:0),gpu:a100", 3, ""),
        ("gpu:1g.10gb:28(S:0-1)", 28, ""),
        ("gpu:ampere:6(S:0-1),gpu:1g.10gb:28(S:0-1)", 6, "ampere:6"),
        ("gpu:a100:4,gpu:v100:2,gpu:3g.20gb:1", 6, "a100:4,v100:2"),
    ],
)
def test_whole_gpus_are_counted_and_asked_for_by_their_kind_where_slices_are_beside_them(
    gres, number, option
):
    expected = Hosts("p", 4, 64, number, option)
    assert [*slurm.parse_hosts(f"noise\np|4|64+|{gres}\n")] == [expected]


@pytest.mark.parametrize(
    ("asked", "hosts", "status", "found", "fix"),
    [
        ((2, 4, 4, 4), [Hosts("p", 2, 16, 4)], "ok", "partition p", ""),
        ((3, 4, 4, 4), [Hosts("p", 2, 64, 4)], "bad", "has 2 hosts", "--nodes=2"),
        ((2, 4, 4, 8), [Hosts("p", 2, 16, 4)], "bad", "16 CPUs", "--cpus-per-task=4"),
        ((2, 8, 4, 1), [Hosts("p", 2, 16, 4)], "bad", "one task per", "--ntasks-per-node=4"),
        ((2, 2, 4, 1), [Hosts("p", 2, 16, 4)], "warn", "one task per", "--ntasks-per-node=4"),
        ((1, 4, 0, 1), [Hosts("p", 2, 16, 4)], "warn", "stay idle", "--gpus-per-node=4"),
        (
            (1, 4, 4, 1),
            [Hosts("p", 2, 16, 0), Hosts("fast", 2, 16, 4)],
            "bad",
            "GPUs are in fast",
            "--gpus-per-node=0",
        ),
        ((), [], "skipped", "no hosts", ""),
    ],
)
def test_a_job_is_held_against_the_hosts_of_its_partition(asked, hosts, status, found, fix):
    check = slurm.shape(JobRequest(*asked), hosts, "p")
    assert (check.status, bool(check.fix)) == (status, bool(fix))
    assert found in check.found and fix in check.fix


@pytest.mark.parametrize(
    ("env", "fix"),
    [
        ({"SBATCH_NO_REQUEUE": "1"}, "unset SBATCH_NO_REQUEUE"),
        ({"SBATCH_SIGNAL": "USR1@60"}, "unset SBATCH_SIGNAL"),
        ({"OMP_NUM_THREADS": "1"}, "unset OMP_NUM_THREADS"),
        ({"SRUN_CPUS_PER_TASK": "1"}, "unset SRUN_CPUS_PER_TASK"),
        ({"SBATCH_OPEN_MODE": "truncate"}, "unset SBATCH_OPEN_MODE"),
        ({"SBATCH_EXPORT": "NONE", "SBATCH_SIGNAL": "B:USR1@600"}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "1000"}, "exit  # and submit"),
    ],
)
def test_a_variable_that_undoes_the_batch_script_is_told(env, fix):
    (check,) = slurm.environment(env, "24.05")
    assert check.status == ("warn" if fix else "ok") and fix in check.fix


@pytest.mark.parametrize(
    ("options", "partition", "gpus_per_node", "nodes", "tasks", "gpus"),
    [
        ("", None, "", 2, 4, 4),
        ("--nodes 3-5", "low", "h100:8", 3, 4, 8),
        ("-N1 --gpus-per-node=0 -p x --exclusive", "x", "h100:8", 1, 4, 0),
        ("--gpus-per-node=a100:2,v100:2", None, "", 2, 4, 4),
        ("--gpus-per-node=a100", None, "", 2, 4, 1),
        ("--gres=gpu:2", None, "", 2, 4, 2),
        ("--gres=gpu:a100:3,tmpfs:10G", None, "", 2, 4, 3),
        ("--gres=tmpfs:10G", None, "", 2, 4, 4),
        ("--gpus=8", None, "", 2, 4, 4),
        ("-G 5 -N 2", None, "", 2, 4, 3),
        ("--gpus-per-task=1 --ntasks-per-node=3", None, "", 2, 3, 3),
        ("-n 8 -N4", None, "", 4, 2, 4),
        ("--ntasks=8 --ntasks-per-node=8", None, "", 2, 8, 4),
    ],
)
def test_what_a_job_asks_for_is_read_as_sbatch_reads_it(
    options, partition, gpus_per_node, nodes, tasks, gpus
):
    env = {"SBATCH_PARTITION": "low"} if partition else {}
    env |= {"SBATCH_GPUS_PER_NODE": gpus_per_node} if gpus_per_node else {}
    found = job_request.request_of(DISTILL.read_text(), options.split(), env)
    assert found == JobRequest(nodes, tasks, gpus, 4, partition)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ([], None),
        (["--time=5"], "warn"),
        (["--time=00:05:00"], "warn"),
        (["-t", "6"], None),
        (["--time=5", "--signal=B:USR1@60"], None),
        (["--time=1", "--signal=USR2"], "warn"),  # a minute before
        (["--time=2", "--signal=USR2"], None),
        (["--time=1-0"], None),
        (["--time=UNLIMITED"], None),
        (["--time=soon"], "bad"),
    ],
)
def test_a_lead_as_long_as_the_time_limit_is_told(options, status):
    """The job was told to leave as soon as it began, and requeued without end."""
    script = "#SBATCH --time=04:00:00\n#SBATCH --signal=B:USR1@300\n"
    assert [check.status for check in job_request.timing(script, options, {})] == (
        [status] * bool(status)
    )


def test_munge_is_judged_together_with_what_slurm_answers():
    missing = Output("", "munge is not on PATH", missing=True)
    assert slurm.munge(Output("MUNGE:..."), "auth/munge", True).status == "ok"
    assert slurm.munge(missing, "auth/munge", True).status == "ok"
    assert slurm.munge(missing, "auth/slurm", True).status == "skipped"


HARSH = {
    "JobRequeue": "0",
    "KillWait": "5 sec",
    "PreemptMode": "CANCEL",
    "PreemptType": "preempt/qos",
    "ProctrackType": "proctrack/pgid",
    "RequeueExit": "80-95",
    "RequeueExitHold": "93",
}


@pytest.mark.parametrize("mode", ["CANCEL", "SUSPEND,GANG", "REQUEUE"])
def test_every_setting_that_is_found_wanting_comes_with_something_of_its_own_to_type(mode):
    partition = {"PartitionName": "p", "Default": "YES", "GraceTime": "0", "PreemptMode": mode}
    cluster = slurm.Slurm((), HARSH, {"p": partition})
    found = {c.name: c for c in slurm.settings(cluster, None) if c.status != "ok"}
    names = {"JobRequeue", "KillWait", "GraceTime", "PreemptType", "ProctrackType", "RequeueExit"}
    assert names <= set(found)
    assert ("PreemptMode" in found) == (mode != "REQUEUE")
    assert all(c.fix and c.fix != "scontrol show config" for c in found.values())


def test_a_partition_that_is_not_there_is_told_with_those_that_are():
    cluster = slurm.Slurm((), HARSH, {"gpu": {"PartitionName": "gpu", "Default": "NO"}})
    assert [check.status for check in slurm.settings(cluster, "gpus")] == ["bad"]
    (check,) = slurm.settings(cluster, None)
    assert check.status == "warn" and "--partition=gpu" in check.fix
