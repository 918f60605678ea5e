"""The stages of a preparation as a chain of Slurm arrays: `python -m launch.prepare`.

The submitter checks everything and exits. A stage that fails cancels the stages that depend on it;
submitting again makes the missing targets.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import submitit

from fitb.base.errors import CRASH, FINISHED, ConfigError, SystemFault
from fitb.base.fsio import write_json
from fitb.base.job_states import ENDED
from fitb.cluster import slurm
from fitb.cluster.arrays import submit_tasks
from fitb.cluster.executor import make_executor, script_of, submission_parser
from fitb.cluster.site_env import HANDED_ON
from fitb.config.launcher import LauncherArguments
from fitb.config.parser import parse
from fitb.config.yaml import to_yaml
from fitb.corpus.prepare import begin, prepare
from fitb.corpus.prepare_config import PrepareConfig
from fitb.corpus.stages import Task, missing, stages_of
from fitb.corpus.work import JOBS, alone, folder_of
from fitb.shards.manifest import MANIFEST

SINGLE = ("cluster", "tokenizer", "finish")  # stages of one task
_POLL_S = 2.0

logger = logging.getLogger(__name__)


def submit(config: PrepareConfig, where: argparse.Namespace) -> dict[str, str]:
    """Submit the stages that have missing targets; return the job id of each.

    Args:
        config: the preparation.
        where: values of `launcher_arguments`.
    Raises: as `prepare`; SystemFault if Slurm refuses a job.
    """
    if where.tasks < 1:
        raise ConfigError(f"tasks={where.tasks}; at least 1")
    stages = stages_of(config)
    _executor(folder_of(config), stages[0], where)  # reports wrong options before any work
    jobs: dict[str, str] = {}
    with alone(config):
        work = begin(config)
        is_read = not missing(work, stages[0])
        for stage in stages:
            if (is_read or stage == stages[0]) and not missing(work, stage):
                continue
            executor = _executor(work.folder, stage, where, next(reversed(jobs.values()), ""))
            num = _num_tasks(stage, where)
            tasks = [Task(str(work.folder), stage, rank, num) for rank in range(num)]
            try:
                first = submit_tasks(executor, tasks)[0]
            except SystemFault as error:
                others = f"cancel the jobs {' '.join(jobs.values())}, and " if jobs else ""
                raise SystemFault(f"stage {stage}: {error}; {others}submit again") from error
            jobs[stage] = first.job_id.partition("_")[0]
            write_json(work.folder / JOBS, jobs)
    return jobs


def _num_tasks(stage: str, where: argparse.Namespace) -> int:
    return 1 if stage in SINGLE else int(where.tasks)


def _executor(
    work: Path, stage: str, where: argparse.Namespace, after: str = ""
) -> submitit.Executor:
    """Return the submitit executor of a stage, which begins after the job `after`, if any."""
    of_stage = argparse.Namespace(**{**vars(where), "job_name": f"{where.job_name}-{stage}"})
    executor = make_executor(of_stage, work / "stages" / stage, after=after)
    # Of the site's SBATCH_ variables only HANDED_ON (account, partition, ...) apply.
    for name in [name for name in os.environ if name.startswith("SBATCH_")]:
        if name not in HANDED_ON:
            del os.environ[name]
    return executor


def dry_run(where: argparse.Namespace, flags: Sequence[str]) -> str:
    """Return the batch scripts of all stages, and the configuration as YAML; write nothing.

    Args:
        where: values of `launcher_arguments`.
        flags: flags of `fitb prepare`.
    Raises: ConfigError if a flag is wrong.
    """
    config = _parse(where, flags)
    if not slurm.is_chosen(where.cluster):
        return f"# no Slurm: the stages run as processes of this machine\n\n{to_yaml(config)}"
    parts: list[str] = []
    after = ""
    for stage in stages_of(config):
        executor = _executor(folder_of(config), stage, where, after)
        parts += [f"# -- stage {stage}", script_of(executor, _num_tasks(stage, where))]
        after = f"JOB_OF_{stage.upper()}"
    return "\n".join([*parts, f"# -- fitb prepare\n{to_yaml(config)}"])


def wait_for(config: PrepareConfig, jobs: dict[str, str]) -> int:
    """Wait until the last stage ends; return exit code FINISHED or CRASH."""
    for last in list(jobs.values())[-1:]:
        while slurm.job_state(last) not in ENDED:
            time.sleep(_POLL_S)
    if (Path(config.out) / MANIFEST).exists():
        return FINISHED
    logger.error("no shard set: see the logs in %s", folder_of(config) / "stages")
    return CRASH


def launcher_arguments() -> LauncherArguments:
    """Return the parser of launcher arguments: how the stages are submitted."""
    parser = submission_parser("python -m launch.prepare")
    add = parser.add_argument
    add("--tasks", type=int, default=16, help="number of tasks of a stage: its array size")
    add("--max_running", type=int, help="number of tasks of a stage that run at the same time")
    add("--cpus_per_task", type=int, default=1, help="CPU cores per task, which uses one")
    add("--mem_per_cpu_gb", type=int, default=2, help="memory per core in GB; 0: site default")
    add("--time_min", type=float, default=240, help="time limit of a task, in minutes")
    parser.set_defaults(job_name="fitb-prepare")
    return parser


def _parse(where: argparse.Namespace, flags: Sequence[str]) -> PrepareConfig:
    return parse(PrepareConfig, where.launcher.prog, flags, launcher=where.launcher)


def launch(where: argparse.Namespace, flags: Sequence[str]) -> int:
    """Submit the stages, or prepare on this machine if Slurm is not chosen.

    Args:
        where: values of `launcher_arguments`.
        flags: flags of `fitb prepare`.
    """
    config = _parse(where, flags)
    if where.dry_run:
        print(dry_run(where, flags), end="")
        return FINISHED
    if not slurm.is_chosen(where.cluster):
        print(prepare(config))
        return FINISHED
    jobs = submit(config, where)
    print(" ".join(f"{name}={job}" for name, job in jobs.items()), flush=True)
    print(f"logs: {folder_of(config) / 'stages'}", flush=True)
    return wait_for(config, jobs) if where.wait else FINISHED
