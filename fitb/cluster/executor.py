"""submitit executors: the flags for a job's resources, the executor, and the batch script."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from fitb.base.errors import ConfigError, SystemFault
from fitb.cluster import slurm
from fitb.cluster.local import MALLOC_KEEPS, malloc_settings
from fitb.cluster.site_env import Site, enter, leave_job
from fitb.config.launcher import LauncherArguments

# submitit counts each shutdown near the time limit as a timeout; fitb.rundir.restart decides here.
MAX_NUM_TIMEOUT = 1_000_000
ALL_AT_ONCE = 1_000_000  # default number of array tasks that may run at a time
TIME_MIN = 240.0
NO_PREFLIGHT = (
    "--preflight starts job steps, and a container has no Slurm commands; leave out the flag,"
    " or FITB_APPTAINER"
)
# Patterns that submitit, or Slurm in the paths of logs, would replace in the name of a folder. To
# Slurm a backslash turns off all patterns.
REPLACED = {"local": ("%j", "%t", "%A", "%a"), "slurm": ("%", "\\")}
# Drop settings that leak from the submitting shell into the job; see slurm/distill.sh.
AMBIENT = (
    "unset SLURM_EXPORT_ENV",
    '[ -z "${SLURM_CPU_BIND_LIST:-}" ] || unset "${!SLURM_CPU_BIND@}"',
    'memory=("${!SLURM_MEM_PER_@}"); [ "${#memory[@]}" -lt 2 ] || unset "${memory[@]}"',
)
# Job id as Slurm's commands and submitit write it; in an array SLURM_JOB_ID may mean all tasks.
JOB = "job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_JOB_ID:+_$SLURM_ARRAY_TASK_ID}"
# Task 0 always writes a result, unless srun has not started it, or the script is to decide.
ENDED = (
    "code=$?",
    'if [ "$code" != 85 ] && [ ! -e "$logs/${job}_0_result.pkl" ]; then',
    '  echo "fitb: srun ended with $code, and there is no ${job}_0_result.pkl in $logs"',
    '  decide "$code"',
    "  code=$?",
    "fi",
)
# On a host that cannot open its logs srun starts nothing, and the other hosts wait for it.
WRITABLE = (
    'timeout --signal=KILL 60 srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1'
    """ bash -c '[ -w "$0" ] || { echo "fitb: $SLURMD_NODENAME cannot write $0" >&2; exit 1; }'"""
    """ "$logs" || {"""
)
# A busy controller answers later; a job that no controller knows of counts as running.
SHOW_JOB = """\
show_job() {
  for _ in {1..6}; do
    record=$(scontrol show job --oneliner "$job") && return
    sleep 5
  done
  record=JobState=RUNNING
}"""
# Seconds before the signal, in which the tasks may be started again; see slurm/distill.sh.
LOOK_FOR_ROOM = """\
look_for_room() {{
  room=0
  show_job
  grep --quiet JobState=RUNNING <<<"$record" || exit "$1"
  end=$(grep --only-matching --perl-regexp 'EndTime=\\K\\S+' <<<"$record")
  [[ -n $end ]] || return # Slurm does not answer
  end=$(date --date="$end" +%s 2>/dev/null) || end=$(($(date +%s) + 1000000))
  room=$((end - $(date +%s) - FITB_LEAD_S))
  ((room > 0 && FITB_START < {restarts})) || room=0
}}"""
STARTS = "for ((FITB_START = 0; ; FITB_START++)); do export FITB_START"
AGAIN = ('[ "$code" = 11 ] || break', "seen=$((seen + 1))", "done", '(exit "$code")')
# The script requeues, as a container may have no scontrol; but never a cancelled job.
REQUEUE = (
    "code=$?",
    'if [ "$code" = 85 ] && show_job && grep --quiet JobState=RUNNING <<<"$record"; then',
    '  scontrol requeue "$job"',
    "fi",
    'exit "$code"',
)


def submission_parser(prog: str) -> LauncherArguments:
    """Build the parser of the flags that all submissions share; other flags are passed through."""
    parser = LauncherArguments(prog)
    add = parser.add_argument
    add("--cluster", choices=("auto", "slurm", "local"), default="auto", help="where; auto looks")
    add("--partition", help="Slurm partition")
    add("--job_name", default="fitb", help="Slurm's name of the job")
    add("--wait", action="store_true", help="wait for the end and return the job's exit code")
    add(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="print the script and the configuration; submit nothing, write nothing",
    )
    # Defaults of settings that some submissions have no flag for.
    parser.set_defaults(nodes=1, tasks_per_node=1, gpus_per_node=None, signal_delay_s=0)
    parser.set_defaults(chain=0, preflight=False, torchrun=False)
    parser.set_defaults(max_running=None, mem_per_cpu_gb=None)
    return parser


def resource_parser(prog: str, **defaults: Any) -> LauncherArguments:
    """Build the parser of a job's resource flags; other flags are passed through."""
    parser = submission_parser(prog)
    add = parser.add_argument
    add("--nodes", type=int, default=1, help="hosts")
    add("--tasks_per_node", type=int, default=1, help="processes on each host, one per GPU")
    add("--cpus_per_task", type=int, help="CPU cores of each process")
    add("--gpus_per_node", type=int, help="GPUs of each host")
    add("--time_min", type=float, help="time limit of one attempt, in minutes (default: 240)")
    add("--signal_delay_s", type=int, default=300, help="warning before the time limit, in seconds")
    parser.set_defaults(**defaults)
    return parser


class ShownExecutor(submitit.SlurmExecutor):
    """submitit's executor, also constructible without Slurm, to show its script."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def make_executor(
    where: argparse.Namespace,
    folder: Path,
    *,
    setup: Sequence[str] = (),
    checks: Sequence[str] = (),
    chain: str = "",
    decide: str = '(exit "$(($1 ? $1 : 1))")',
    after: str = "",
    restarts: int = 0,
) -> submitit.Executor:
    """Make the executor of a job.

    Args:
        where: flags of the submission.
        folder: folder of the job's logs.
        setup: lines of the batch script before the tasks.
        checks: lines before each start of the tasks.
        chain: name of the job and of its chain, whose jobs run one after another; empty for none.
        decide: command that the batch script runs if task 0 has left no result; gets the exit code
            as $1 and, as $room, the seconds in which the tasks may be started again, and exits with
            11 to start them, or with the exit code of the job.
        after: id of a job that must succeed first; if it fails, this one is cancelled.
        restarts: most times that `decide` may start the tasks again.
    Raises: SystemFault if the cluster is missing or cannot run such a job; ConfigError for an
        unreadable site file, or a folder whose name contains a pattern.
    """
    for part in REPLACED["slurm" if slurm.is_chosen(where.cluster) else "local"]:
        if part in str(folder):
            raise ConfigError(
                f"{str(folder)!r} holds {part!r}, a pattern to submitit and Slurm; use another"
                " folder, or `sbatch slurm/distill.sh` or `fitb prepare`, which take any"
            )
    try:
        if slurm.is_chosen(where.cluster):
            if "srun" in slurm.absent() and not where.dry_run:
                raise RuntimeError("srun is not on PATH; submit where Slurm is, or --cluster local")
            given = {
                "SBATCH_PARTITION": where.partition,
                "SBATCH_TIMELIMIT": where.time_min,
                "SBATCH_GPUS_PER_NODE": where.gpus_per_node,
            }
            site = enter(os.environ, given)
            leave_job(os.environ)
            if where.torchrun is None:
                where.torchrun = os.environ.get("FITB_LAUNCHER") == "torchrun"
            if site.container and where.preflight:
                raise ConfigError(NO_PREFLIGHT)
            room = LOOK_FOR_ROOM.format(restarts=restarts)
            decides = f'decide() {{ look_for_room "$1"; {decide}; }}'
            setup = [SHOW_JOB, room, decides, *setup, STARTS, *checks]
            return _slurm_executor(where, folder, setup, chain, after, site)
        if where.chain or where.preflight:
            raise ValueError("--chain and --preflight need Slurm; leave them out")
        return _local_executor(where, folder)
    except (RuntimeError, ValueError) as error:
        raise SystemFault(f"--cluster {where.cluster}: {error}") from error


def _slurm_executor(
    where: argparse.Namespace,
    folder: Path,
    setup: Sequence[str],
    chain: str,
    after: str,
    site: Site,
) -> submitit.SlurmExecutor:
    executor = ShownExecutor(folder, max_num_timeout=MAX_NUM_TIMEOUT, python=site.command())
    link: dict[str, Any] = (
        {"no-requeue": True, "dependency": "singleton"} if chain else {"requeue": True}
    )
    if after:
        link |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
    end = ("code=$?", 'exit "$code"') if chain else REQUEUE
    tasks, cpus = where.tasks_per_node, where.cpus_per_task
    threads = "${SLURM_CPUS_PER_TASK:-1}"
    if where.torchrun:
        threads, cpus, tasks = str(cpus or 1), cpus and cpus * tasks, 1
    executor.update_parameters(
        job_name=chain or where.job_name,
        nodes=where.nodes,
        ntasks_per_node=tasks,
        cpus_per_task=cpus,
        gpus_per_node=where.gpus_per_node,
        time=math.ceil(where.time_min or TIME_MIN),
        partition=where.partition,
        signal_delay_s=where.signal_delay_s,
        additional_parameters=link,
        array_parallelism=where.max_running or ALL_AT_ONCE,
        mem_per_cpu=f"{where.mem_per_cpu_gb}G" if where.mem_per_cpu_gb else None,
        # See slurm/distill.sh for why a bad exit does not kill.
        srun_args=["--kill-on-bad-exit=0", "--wait=10", "--open-mode=append"],
        setup=[
            *AMBIENT,
            *site.setup,
            JOB,
            "unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT",
            f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{threads}}}",
            *(
                f"((${{SLURM_GPUS_ON_NODE:-0}})) || export {name}=${{{name}-{value}}}"
                for name, value in MALLOC_KEEPS.items()
            ),
            'if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then'
            " export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi",
            f"export FITB_LEAD_S={where.signal_delay_s} FITB_BEGAN=$(date +%s)",
            f"logs={shlex.quote(str(folder))}",
            *setup,
            *((WRITABLE, 'decide "$?"', *end, "}") if where.nodes > 1 else ()),
        ],
        teardown=[*ENDED, *AGAIN, *end],
    )
    return executor


def _local_executor(where: argparse.Namespace, folder: Path) -> submitit.LocalExecutor:
    for name, value in malloc_settings().items():  # tasks inherit this environment
        os.environ.setdefault(name, value)
    executor = submitit.LocalExecutor(folder, max_num_timeout=MAX_NUM_TIMEOUT)
    executor.update_parameters(
        nodes=where.nodes,
        tasks_per_node=1 if where.torchrun else where.tasks_per_node,
        gpus_per_node=where.gpus_per_node or 0,
        timeout_min=where.time_min or TIME_MIN,
        signal_delay_s=where.signal_delay_s,
    )
    return executor


def script_of(executor: submitit.Executor, num_jobs: int = 1) -> str:
    """Return the exact script that an executor would submit.

    Args:
        executor: executor of the job.
        num_jobs: number of jobs; several are an array.
    """
    if not isinstance(executor, submitit.SlurmExecutor):
        return "# no Slurm: the tasks run as local processes\n"
    parameters: dict[str, Any] = dict(executor.parameters)
    if num_jobs > 1:
        parameters["map_count"] = num_jobs
    command = executor._submitit_command_str
    return _make_sbatch_string(command=command, folder=executor.folder, **parameters)
