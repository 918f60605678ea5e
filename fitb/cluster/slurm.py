"""What a batch script needs to know about its Slurm job: hosts, port, run directory, state.

`python -m fitb.cluster.slurm [flags of fitb train]` prints three lines for slurm/distill.sh: run
directory, MASTER_ADDR, MASTER_PORT. It checks the flags first, so that a typing error costs one
process and no GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

from fitb.config import Config
from fitb.errors import ConfigError, FitbError, SystemFault
from fitb.flags import parse, resolve_resource

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
    FORGOTTEN,
)
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
    command = ["scontrol", "show", "job", "--oneliner", job_id]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemFault(f"`{' '.join(command)}` failed: {error}") from error
    match = re.search(r"\bJobState=(\w+)", done.stdout)
    if match:
        return match[1]
    if "Invalid job id" in done.stderr:
        return FORGOTTEN
    said = (done.stderr or done.stdout).strip()[:200]
    raise SystemFault(f"`{' '.join(command)}` did not tell the state of the job: {said!r}")


def default_run_dir(job_name: str) -> str:
    return f"runs/{job_name}"


def plan(flags: Sequence[str], env: Mapping[str, str]) -> tuple[str, str, int]:
    """Return (run directory, address of rank 0, its port) for the job whose environment this is.

    Raises: ConfigError for flags that `fitb train` would refuse, or outside a Slurm job.
    """
    try:
        job_id, nodelist = int(env["SLURM_JOB_ID"]), env["SLURM_JOB_NODELIST"]
    except KeyError as error:
        raise ConfigError(f"{error} is not set; submit with `sbatch slurm/distill.sh`") from None
    run_dir = default_run_dir(env.get("SLURM_JOB_NAME", "fitb-distill"))
    config = parse(Config, "fitb train", ["--run_dir", run_dir, *flags])
    resolve_resource(config.ds_config, "fitb.ds_configs", ".json")
    if "SLURM_NTASKS" in env:
        config.grad_accum(int(env["SLURM_NTASKS"]))
    port = master_port(job_id, int(env.get("SLURM_RESTART_COUNT", "0")))
    return config.run_dir, first_host(nodelist), port


def main(args: Sequence[str]) -> int:
    try:
        run_dir, address, port = plan(args, os.environ)
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code
    print(run_dir, address, port, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
