"""What a batch script needs to know about its Slurm job: hosts, port, run directory, state.

`python -m fitb.cluster.slurm [flags of fitb train]` prints four lines for slurm/distill.sh: run
directory, MASTER_ADDR, MASTER_PORT, number of attempts so far. It checks the flags first, so that a
typing error costs one process and no GPU. It exits with NOTHING_LEFT where the run is finished, and
with 93 where it was stopped together with the chain that this job is a link of.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fitb.cluster import progress
from fitb.config import Config
from fitb.config.parser import parse
from fitb.ds_config import read_ds_config
from fitb.errors import FINISHED, ConfigError, FitbError, SystemFault
from fitb.world import address_of

FIRST_PORT = 20_000
NUM_PORTS = 12_000  # ends below 32768, where Linux begins to hand out ports of its own
FORGOTTEN = "FORGOTTEN"  # our word: Slurm drops a job from its memory some minutes after its end
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "DEADLINE",
    "BOOT_FAIL",
    FORGOTTEN,
)
LAUNCHERS = ("srun", "torchrun")  # the first where nobody says
NOTHING_LEFT = 10  # exit code of this module
RESTART_STRIDE = 3_571  # coprime to NUM_PORTS: no restart meets the port of the one before


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


def job_state(job_id: str) -> str:
    """Return Slurm's word for the state of a job; RUNNING includes the grace of a preemption.

    Raises: SystemFault where scontrol is missing or cannot say.
    """
    return _job_field(job_id, "JobState") or FORGOTTEN


def _job_field(job_id: str, name: str) -> str | None:
    """Return a field of `scontrol show job`, or None where Slurm has forgotten the job."""
    command = ["scontrol", "show", "job", "--oneliner", job_id]
    code, output, errors = _asked(command)
    match = re.search(rf"\b{name}=(\S+)", output)
    if match:
        return match[1]
    if "Invalid job id" in errors:
        return None
    said = (errors or output).strip()[:200]
    raise SystemFault(f"`{' '.join(command)}` did not tell the {name} of the job: {said!r}")


def _asked(command: Sequence[str]) -> tuple[int, str, str]:
    """Return exit code, output and errors of one of Slurm's commands."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemFault(f"`{' '.join(command)}` failed: {error}") from error
    return done.returncode, done.stdout, done.stderr


def _tell(*command: str, tries: int = 3) -> None:
    """Run one of Slurm's commands, again where the controller was busy.

    Raises: SystemFault with what Slurm said.
    """
    for left in reversed(range(tries)):
        code, output, errors = _asked(command)
        if code == 0:
            return
        if not left:
            said = (errors or output).strip()[:200]
            raise SystemFault(f"`{' '.join(command)}` was refused: {said!r}")
        time.sleep(1)


def requeue(job_id: str) -> None:
    """Put this job back into the queue; Slurm then ends what still runs of it.

    Raises: SystemFault where Slurm refuses.
    """
    _tell("scontrol", "requeue", job_id)


def excluded_hosts(job_id: str) -> list[str]:
    """Return the hosts that a job may not get, as its submission or an update said.

    Raises: SystemFault where Slurm does not say.
    """
    value = _job_field(job_id, "ExcNodeList")
    return [] if value in (None, "(null)") else expand_nodelist(str(value))


def exclude_hosts(job_id: str, hosts: Sequence[str]) -> None:
    """Keep a job that waits from these hosts and from no others; Slurm refuses where it runs.

    Raises: SystemFault where Slurm refuses.
    """
    _tell("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(hosts)}")


def hosts_of_partition(partition: str) -> list[str]:
    """Return all hosts of a partition, whatever state they are in.

    Raises: SystemFault where Slurm does not say.
    """
    command = ["sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N"]
    code, output, errors = _asked(command)
    if code:
        raise SystemFault(f"`{' '.join(command)}` failed: {errors.strip()[:200]!r}")
    return output.split()


def waiting_links(job_name: str) -> list[str]:
    """Return the ids of this user's jobs of a name that wait: the later links of a chain.

    Raises: SystemFault where Slurm does not say.
    """
    command = ["squeue", "--noheader", "--me", "--states=PENDING", f"--name={job_name}"]
    code, output, errors = _asked([*command, "--format=%i"])
    if code:
        raise SystemFault(f"`{' '.join(command)}` failed: {errors.strip()[:200]!r}")
    return output.split()


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
        source = progress.Source.from_env(os.environ)
        over = progress.already_over(run_dir, source=source, steps=job.steps)
        if over:
            print(f"fitb: {over.reason}", file=sys.stderr)
            return NOTHING_LEFT if over.exit_code == FINISHED else over.exit_code
        progress.begin_afresh(run_dir)
        seen = progress.num_attempts(run_dir)
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    print(job.run_dir, job.address, job.port, seen, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
