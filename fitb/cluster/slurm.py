"""Slurm's commands, and what a batch script needs to know: hosts, port, run directory, state.

`python -m fitb.cluster.slurm [flags of fitb train]` prints four lines for slurm/distill.sh: run
directory, MASTER_ADDR, MASTER_PORT, number of attempts so far. It checks the flags first, so that a
typing error costs one process and no GPU. It exits with NOTHING_LEFT where the run is finished, and
with 93 where it was stopped together with the chain that this job is a link of.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fitb.base.errors import FINISHED, ConfigError, FitbError, SystemFault
from fitb.base.job_states import ENDED, FORGOTTEN
from fitb.base.world import address_of
from fitb.cluster.process import output_of
from fitb.config import Config
from fitb.rundir import restart

FIRST_PORT = 20_000
NUM_PORTS = 12_000  # ends below 32768, where Linux begins to hand out ports of its own
COMMANDS = ("sbatch", "srun", "scontrol", "sinfo")
LAUNCHERS = ("srun", "torchrun")  # the first where nobody says
NOTHING_LEFT = 10  # exit code of this module
RESTART_STRIDE = 3_571  # coprime to NUM_PORTS: no restart meets the port of the one before


def absent() -> tuple[str, ...]:
    """Return the commands of Slurm that are not on PATH."""
    return tuple(name for name in COMMANDS if shutil.which(name) is None)


def is_here() -> bool:
    """Whether this is a machine of Slurm."""
    return len(absent()) < len(COMMANDS)


def is_chosen(cluster: str) -> bool:
    """Whether a flag --cluster (slurm, local, or auto, which looks) means Slurm."""
    return cluster == "slurm" or (cluster == "auto" and is_here())


def ask(*words: str, timeout_s: float = 60.0) -> str:
    """Return what a command of Slurm prints.

    Raises: SystemFault where it is missing, says no or does not answer.
    """
    found = output_of(*words, timeout_s=timeout_s)
    if not found.ok:
        raise SystemFault(found.problem)
    return found.text.strip()


def tell(*words: str, tries: int = 3) -> None:
    """Run a command of Slurm, again where the controller was busy.

    Raises: SystemFault with what Slurm said.
    """
    for left in reversed(range(tries)):
        try:
            ask(*words)
            return
        except SystemFault:
            if not left:
                raise
            time.sleep(1)


def master_port(job_id: int, restart_count: int) -> int:
    """Return the port of rank 0, another one for each job and for each restart of a job."""
    return FIRST_PORT + (job_id + restart_count * RESTART_STRIDE) % NUM_PORTS


def expand_nodelist(expression: str) -> list[str]:
    """Expand Slurm's notation of hosts: 'a[1-2,07],b' is a1, a2, a07, b.

    Raises: ConfigError where brackets do not match or a range is not one.
    """
    groups = re.findall(r"(?:\[[^\[\]]*\]|[^,\[\]])+", expression)
    if not groups or ",".join(groups) != expression:
        raise ConfigError(f"{expression!r} is not a list of hosts; expected 'name[1-3,7],other'")
    return [host for group in groups for host in _expand_group(group)]


def _expand_group(group: str) -> list[str]:
    hosts = [""]
    for part in re.split(r"(\[.*?\])", group):
        endings = _expand_ranges(part[1:-1]) if part.startswith("[") else [part]
        hosts = [host + ending for host in hosts for ending in endings]
    return hosts


def _expand_ranges(ranges: str) -> list[str]:
    numbers: list[str] = []
    for item in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if not match:
            raise ConfigError(f"[{ranges}] in a list of hosts: {item!r} is neither N nor N-M")
        begin, end = match[1], match[2] or match[1]
        numbers += [f"{number:0{len(begin)}}" for number in range(int(begin), int(end) + 1)]
    return numbers


def first_host(expression: str) -> str:
    """Return the host of rank 0.

    Raises: ConfigError
    """
    return expand_nodelist(expression)[0]


def parse_record(text: str) -> dict[str, str]:
    """Return the fields of one record of `scontrol show job` or `show partition`."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)=(\S*)", text))


def job_record(job_id: str, timeout_s: float = 60.0) -> dict[str, str]:
    """Return the fields of a job, of an array the first one that is told; {} of a forgotten job.

    Raises: SystemFault where Slurm does not say.
    """
    try:
        answer = ask("scontrol", "show", "job", "--oneliner", job_id, timeout_s=timeout_s)
    except SystemFault as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    record = parse_record(answer.partition("\n")[0])
    if "JobState" not in record:
        raise SystemFault(f"`scontrol show job {job_id}` tells no JobState: {answer[:200]!r}")
    return record


def job_state(job_id: str) -> str:
    """Return Slurm's word for the state of a job; RUNNING includes the grace of a preemption.

    Raises: SystemFault where scontrol is missing or cannot say.
    """
    return job_record(job_id).get("JobState", FORGOTTEN)


def reported_state(job_id: str, timeout_s: float = 5.0) -> str | None:
    """Return Slurm's word for the state of a job; None where it does not tell within the time."""
    if not re.fullmatch(r"\d+(_\d+)?", job_id) or not is_here():
        return None
    try:
        return job_record(job_id, timeout_s).get("JobState")
    except SystemFault:
        return None


def is_over(job_id: str) -> bool:
    """Return whether Slurm knows that a job has ended, or waits to be started again.

    One that Slurm has forgotten, or cannot be asked about, may still run.
    """
    try:
        state = job_state(job_id)
    except SystemFault:
        return False
    return state == "PENDING" or (state in ENDED and state != FORGOTTEN)


def requeue(job_id: str) -> None:
    """Put this job back into the queue; Slurm then ends what still runs of it.

    Raises: SystemFault where Slurm refuses.
    """
    tell("scontrol", "requeue", job_id)


def excluded_hosts(job_id: str) -> list[str]:
    """Return the hosts that a job may not get, as its submission or an update said.

    Raises: SystemFault where Slurm does not say.
    """
    value = job_record(job_id).get("ExcNodeList", "(null)")
    return [] if value == "(null)" else expand_nodelist(value)


def exclude_hosts(job_id: str, hosts: Sequence[str]) -> None:
    """Keep a job that waits from these hosts and from no others; Slurm refuses where it runs.

    Raises: SystemFault where Slurm refuses.
    """
    tell("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(hosts)}")


def hosts_of_partition(partition: str) -> list[str]:
    """Return all hosts of a partition, whatever state they are in.

    Raises: SystemFault where Slurm does not say.
    """
    return ask("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N").split()


def waiting_links(job_name: str) -> list[str]:
    """Return the ids of this user's jobs of a name that wait: the later links of a chain.

    Raises: SystemFault where Slurm does not say.
    """
    words = ("--noheader", "--me", "--states=PENDING", f"--name={job_name}", "--format=%i")
    return ask("squeue", *words).split()


def default_run_dir(job_name: str) -> str:
    return f"runs/{job_name}"


class Plan(NamedTuple):
    """What a batch script needs: run directory, address of rank 0, its port, steps of the run."""

    run_dir: str
    address: str
    port: int
    steps: int


def num_ranks(env: Mapping[str, str]) -> int:
    """Return how many ranks a job has: a task each, or with torchrun several in each host's task.

    Raises: ConfigError where FITB_LAUNCHER or FITB_PROCESSES_PER_NODE is not what it may be.
    """
    launcher = env.get("FITB_LAUNCHER", LAUNCHERS[0])
    if launcher not in LAUNCHERS:
        known = " or ".join(LAUNCHERS)
        raise ConfigError(f"FITB_LAUNCHER={launcher!r}; expected {known}, or leave it unset")
    if launcher == LAUNCHERS[0]:
        return int(env.get("SLURM_NTASKS", "1"))
    each = env.get("FITB_PROCESSES_PER_NODE", "1")
    if not each.isdigit() or int(each) < 1:
        raise ConfigError(f"FITB_PROCESSES_PER_NODE={each!r}; expected a number from 1 on")
    return int(env.get("SLURM_JOB_NUM_NODES", "1")) * int(each)


def plan(flags: Sequence[str], env: Mapping[str, str]) -> Plan:
    """Plan the job whose environment this is.

    Raises: ConfigError for flags that `fitb train` would refuse, or outside a Slurm job.
    """
    # Here, as the doctor imports this module where libraries are missing.
    from fitb.config.ds_config import read_ds_config
    from fitb.config.parser import parse

    try:
        job_id, nodelist = int(env["SLURM_JOB_ID"]), env["SLURM_JOB_NODELIST"]
    except KeyError as error:
        raise ConfigError(f"{error} is not set; submit with `sbatch slurm/distill.sh`") from None
    run_dir = default_run_dir(env.get("SLURM_JOB_NAME", "fitb-distill"))
    config = parse(Config, "fitb train", ["--run_dir", run_dir, *flags])
    read_ds_config(config.ds_config)
    config.grad_accum(num_ranks(env))
    if "\n" in config.run_dir:
        raise ConfigError(f"run_dir={config.run_dir!r} is more than one line; choose another one")
    port = master_port(job_id, int(env.get("SLURM_RESTART_COUNT", "0")))
    return Plan(config.run_dir, address_of(first_host(nodelist), env), port, config.steps)


def main(args: Sequence[str]) -> int:
    try:
        job = plan(args, os.environ)
        run_dir = Path(job.run_dir)
        source = restart.Source.from_env(os.environ)
        over = restart.already_over(run_dir, source=source, steps=job.steps)
        if over:
            print(f"fitb: {over.reason}", file=sys.stderr)
            return NOTHING_LEFT if over.exit_code == FINISHED else over.exit_code
        restart.begin_afresh(run_dir)
        seen = restart.num_attempts(run_dir)
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    print(job.run_dir, job.address, job.port, seen, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
