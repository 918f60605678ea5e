from __future__ import annotations

import itertools

import pytest
from executable import executable

from fitb.base.errors import ConfigError, SystemFault
from fitb.cluster.slurm import (
    FORGOTTEN,
    expand_nodelist,
    first_host,
    job_state,
    master_port,
    num_ranks,
    plan,
)


@pytest.mark.parametrize(
    ("expression", "hosts"),
    [
        ("host1", ["host1"]),
        ("host[1-3,7],other", ["host1", "host2", "host3", "host7", "other"]),
        ("gpu-a-[08-10]", ["gpu-a-08", "gpu-a-09", "gpu-a-10"]),
        ("n[9-11].site.org", ["n9.site.org", "n10.site.org", "n11.site.org"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("login,r[3]c[005]-ib", ["login", "r3c005-ib"]),
        ("10.0.0.[7,9]", ["10.0.0.7", "10.0.0.9"]),
    ],
)
def test_nodelist_expands_to_hosts_in_slurms_order(expression, hosts):
    assert expand_nodelist(expression) == hosts
    assert first_host(expression) == hosts[0]


@pytest.mark.parametrize("expression", ["", "a[1-2", "a]1[", "a,,b", "a[1-x]", "a[]", "a[1-2-3]"])
def test_broken_nodelist_is_an_error_that_shows_it(expression):
    with pytest.raises(ConfigError):
        expand_nodelist(expression)


def test_ports_lie_below_the_ephemeral_range_and_differ_at_each_start():
    for job in (0, 1, 11_999, 12_000, 67_043_328, 2**32):
        ports = [master_port(job, restart) for restart in range(100)]
        assert len(set(ports)) == 100
        assert all(20_000 <= port < 32_000 for port in ports)
    assert len({master_port(job, 0) for job in range(500, 600)}) == 100
    starts = [master_port(7, *both) for both in itertools.product(range(10), range(11))]
    assert len(set(starts)) == 110


ENV = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "h[3-4]", "SLURM_JOB_NAME": "mine"}


def test_plan_takes_the_run_directory_from_flag_or_file_or_job_name(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("run_dir: from/file\n")
    assert plan(["--stop.restarts", "0"], ENV)[1:] == ("h3", [20_007])
    ports = [*plan([], ENV)[2], *plan([], ENV | {"SLURM_RESTART_COUNT": "1"})[2]]
    assert ports[0] == 20_007 and len(set(ports)) == 22
    file_flags = ["--config", str(file)]
    for flags, run_dir in (
        ([], "runs/mine"),
        (["--run_dir", "a"], "a"),
        (["--run_dir=a b"], "a b"),
        (file_flags, "from/file"),
        ([*file_flags, "--run_dir", "a"], "a"),
    ):
        assert plan(flags, ENV)[0].run_dir == run_dir
    with pytest.raises(ConfigError, match="sbatch"):
        plan([], {})


def test_ranks_are_the_tasks_or_what_torchrun_starts_on_every_host():
    job = ENV | {"SLURM_NTASKS": "6", "SLURM_JOB_NUM_NODES": "2"}
    assert (num_ranks({}), num_ranks(job)) == (1, 6)
    torchrun = job | {"FITB_LAUNCHER": "torchrun"}
    assert num_ranks(torchrun | {"FITB_PROCESSES_PER_NODE": "4"}) == 8
    for each in ("many", "0", "-1", ""):
        with pytest.raises(ConfigError, match=f"FITB_PROCESSES_PER_NODE='{each}'; expected"):
            num_ranks(torchrun | {"FITB_PROCESSES_PER_NODE": each})
    with pytest.raises(ConfigError, match="400 processes"):
        plan([], torchrun | {"FITB_PROCESSES_PER_NODE": "200"})


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("echo JobId=7 JobState=RUNNING Reason=None", "RUNNING"),
        ("echo JobId=7 JobState=RUNNING; echo JobId=8 JobState=COMPLETED", "RUNNING"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", FORGOTTEN),
        ("echo 'no controller' >&2; exit 3", "scontrol .* ended with 3: no controller"),
        ("echo nonsense", "nonsense"),
        (None, "scontrol is not on PATH"),
    ],
)
def test_job_state_is_what_scontrol_says_or_a_system_fault(monkeypatch, tmp_path, answer, state):
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if answer else str(tmp_path))
    if answer:
        executable(tmp_path / "scontrol", answer, shell="/bin/sh")
    if state.isupper():
        assert job_state("7") == state
    else:
        with pytest.raises(SystemFault, match=state):
            job_state("7")
