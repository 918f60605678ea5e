"""Slurm's commands, host lists and job states, and the plan of a job for its batch script.

`python -m fitb.cluster.slurm [flags of fitb train]` prints five lines for slurm/distill.sh: run
folder, MASTER_ADDR, MASTER_PORT, number of attempts so far, and the port of each start of the tasks
that the run allows in one allocation. (Scripts of earlier versions, still in the queue, read four.)
It validates the flags first, so a typo costs one process and no GPU. It exits with NOTHING_LEFT if
the run is finished, and with 93 if the chain of this job was stopped.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fitb.base.errors import FINISHED, ConfigError, FitbError, SystemFault
from fitb.base.job_states import ENDED, FORGOTTEN
from fitb.base.world import address_of, starts_of
from fitb.cluster.process import output_of
from fitb.config import Config
from fitb.rundir import restart
from fitb.rundir.events import num_attempts

FIRST_PORT = 20_000
NUM_PORTS = 12_000  # all below 32768, where Linux's ephemeral ports begin
COMMANDS = ("sbatch", "srun", "scontrol", "sinfo")
LAUNCHERS = ("srun", "torchrun")  # the first is the default
_QUICK_S = 5.0  # deadline of a question that can go unanswered
NOTHING_LEFT = 10  # exit code of this module
RESTART_STRIDE, START_STRIDE = 3_571, 1_009  # coprime to NUM_PORTS: each start gets another port


def absent() -> tuple[str, ...]:
    """Return the Slurm commands that are not on PATH."""
    return tuple(name for name in COMMANDS if shutil.which(name) is None)


def is_here() -> bool:
    """Return whether any Slurm command is on PATH."""
    return len(absent()) < len(COMMANDS)


def is_chosen(cluster: str) -> bool:
    """Return whether --cluster (slurm, local or auto) selects Slurm."""
    return cluster == "slurm" or (cluster == "auto" and is_here())


def ask(*words: str, timeout_s: float = 60.0) -> str:
    """Run a Slurm command and return its output.

    Raises: SystemFault if it is missing, fails or does not answer in time.
    """
    found = output_of(*words, timeout_s=timeout_s)
    if not found.ok:
        raise SystemFault(found.problem)
    return found.text.strip()


def tell(*words: str) -> None:
    """Run a Slurm command, retrying because the controller may be busy.

    Raises: SystemFault with Slurm's message.
    """
    for left in (2, 1, 0):
        try:
            ask(*words)
            return
        except SystemFault:
            if not left:
                raise
            time.sleep(1)


def num_gpus(env: Mapping[str, str]) -> int:
    """Return how many GPUs Slurm gave of this host."""
    return int(env.get("SLURM_GPUS_ON_NODE", "0"))


def master_port(job_id: int, restart: int, start: int = 0) -> int:
    """Return the port of rank 0, different for each job and each start of its tasks.

    Args:
        job_id: Slurm's number of the job.
        restart: how often Slurm has requeued it.
        start: how often the tasks have been started again since.
    """
    return FIRST_PORT + (job_id + restart * RESTART_STRIDE + start * START_STRIDE) % NUM_PORTS


def expand_nodelist(expression: str) -> list[str]:
    """Expand a Slurm node list: 'a[1-2,07],b' is a1, a2, a07, b.

    Raises: ConfigError if it is malformed.
    """
    groups = re.findall(r"(?:\[[^\[\]]*\]|[^,\[\]])+", expression)
    if not groups or ",".join(groups) != expression:
        raise ConfigError(f"{expression!r} is no node list; expected e.g. 'name[1-3,7],other'")
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
            raise ConfigError(f"[{ranges}] in a node list: {item!r} is neither N nor N-M")
        begin, end = match[1], match[2] or match[1]
        numbers += [f"{number:0{len(begin)}}" for number in range(int(begin), int(end) + 1)]
    return numbers


def first_host(expression: str) -> str:
    """Return the host of rank 0 in a Slurm node list.

    Raises: ConfigError if it is malformed.
    """
    return expand_nodelist(expression)[0]


def parse_record(text: str) -> dict[str, str]:
    """Return the fields of one record of `scontrol show job` or `show partition`."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)=(\S*)", text))


def job_record(job_id: str, timeout_s: float = 60.0) -> dict[str, str]:
    """Return the fields of a job, or of the first task of an array; empty for a forgotten job.

    Raises: SystemFault if Slurm does not answer.
    """
    try:
        answer = ask("scontrol", "show", "job", "--oneliner", job_id, timeout_s=timeout_s)
    except SystemFault as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    record = parse_record(answer.partition("\n")[0])
    if "JobState" not in record:
        raise SystemFault(f"`scontrol show job {job_id}` printed no JobState: {answer[:200]!r}")
    return record


def job_state(job_id: str) -> str:
    """Return Slurm's state of a job; RUNNING includes the grace time of a preemption.

    Raises: SystemFault if scontrol is missing or fails.
    """
    return job_record(job_id).get("JobState", FORGOTTEN)


def reported_state(job_id: str, timeout_s: float = _QUICK_S) -> str | None:
    """Return Slurm's state of a job; None if Slurm is missing or does not answer in time."""
    if not re.fullmatch(r"\d+(_\d+)?", job_id) or not is_here():
        return None
    try:
        return job_record(job_id, timeout_s).get("JobState")
    except SystemFault:
        return None


def is_over(job_id: str) -> bool:
    """Return whether Slurm reports that a job has ended or is pending.

    A job that Slurm has forgotten or cannot report on may still run.
    """
    try:
        state = job_state(job_id)
    except SystemFault:
        return False
    return state == "PENDING" or (state in ENDED and state != FORGOTTEN)


def times_of(job_id: str) -> dict[str, float]:
    """Return when a running job was submitted (or requeued), became eligible and was started.

    Returns: `submitted`, `eligible` and `began`, Unix time in seconds; empty if Slurm is missing or
        does not answer in time.
    """
    if not job_id or not is_here():
        return {}
    try:
        record = job_record(job_id, _QUICK_S)
        names = {"submitted": "SubmitTime", "eligible": "EligibleTime", "began": "StartTime"}
        return {
            key: datetime.datetime.fromisoformat(record[name]).timestamp()
            for key, name in names.items()
        }
    except (SystemFault, KeyError, ValueError):
        return {}


def excluded_hosts(job_id: str) -> list[str]:
    """Return the excluded hosts of a job.

    Raises: SystemFault if Slurm does not answer.
    """
    value = job_record(job_id).get("ExcNodeList", "(null)")
    return [] if value == "(null)" else expand_nodelist(value)


def hosts_of_partition(partition: str) -> list[str]:
    """Return all hosts of a partition, in any state.

    Raises: SystemFault if Slurm does not answer.
    """
    return ask("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N").split()


def waiting_links(job_name: str) -> list[str]:
    """Return the ids of this user's pending jobs of a name: the later links of a chain.

    Raises: SystemFault if Slurm does not answer.
    """
    words = ("--noheader", "--me", "--states=PENDING", f"--name={job_name}", "--format=%i")
    return ask("squeue", *words).split()


def default_run_dir(job_name: str) -> str:
    return f"runs/{job_name}"


def num_ranks(env: Mapping[str, str]) -> int:
    """Return the number of ranks of a job: its tasks, or with torchrun its processes on all hosts.

    Raises: ConfigError for an invalid FITB_LAUNCHER or FITB_PROCESSES_PER_NODE.
    """
    launcher = env.get("FITB_LAUNCHER", LAUNCHERS[0])
    if launcher not in LAUNCHERS:
        known = " or ".join(LAUNCHERS)
        raise ConfigError(f"FITB_LAUNCHER={launcher!r}; expected {known}, or leave it unset")
    if launcher == LAUNCHERS[0]:
        return int(env.get("SLURM_NTASKS", "1"))
    each = env.get("FITB_PROCESSES_PER_NODE", "1")
    if not each.isdigit() or int(each) < 1:
        raise ConfigError(f"FITB_PROCESSES_PER_NODE={each!r}; expected a number of at least 1")
    return int(env.get("SLURM_JOB_NUM_NODES", "1")) * int(each)


def plan(flags: Sequence[str], env: Mapping[str, str]) -> tuple[Config, str, list[int]]:
    """Return configuration, address of rank 0 and its port at each start, for a Slurm job.

    Args:
        flags: flags of `fitb train`.
        env: environment of the job.
    Raises: ConfigError for flags that `fitb train` would refuse, or outside a Slurm job.
    """
    # Imported here because the doctor imports this module where libraries are missing.
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
    restart, _ = starts_of(env)
    ports = [master_port(job_id, restart, start) for start in range(1 + config.stop.restarts)]
    return config, address_of(first_host(nodelist), env), ports


def main(args: Sequence[str]) -> int:
    try:
        config, address, ports = plan(args, os.environ)
        run_dir = Path(config.run_dir)
        source = restart.Source.from_env(os.environ)
        over = restart.already_over(run_dir, source=source, steps=config.steps)
        if over:
            print(f"fitb: {over.reason}", file=sys.stderr)
            return NOTHING_LEFT if over.exit_code == FINISHED else over.exit_code
        restart.begin_afresh(run_dir)
        seen = num_attempts(run_dir)
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    print(config.run_dir, address, ports[0], seen, " ".join(map(str, ports)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
