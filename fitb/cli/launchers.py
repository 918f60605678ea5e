"""launch/distill.py and launch/evaluate.py: submit jobs with submitit, or print their scripts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fitb.base.errors import FINISHED
from fitb.base.job_states import ENDED
from fitb.cluster.arrays import CommandJob, submit_tasks
from fitb.cluster.executor import make_executor, resource_parser, script_of
from fitb.cluster.slurm import default_run_dir, reported_state
from fitb.cluster.submit import plan_distill, submit_distill, wait_for
from fitb.cluster.sweep import plan_sweep
from fitb.config.launcher import LauncherArguments
from fitb.config.parser import parse
from fitb.config.yaml import to_yaml
from fitb.evaluation.evaluate_config import EvaluateConfig
from fitb.evaluation.folder import check_array
from fitb.rundir.names import LOGS
from fitb.rundir.restart import Source, already_over


def distill_arguments() -> LauncherArguments:
    """Build the parser of the launcher arguments of a distillation."""
    parser = resource_parser("python -m launch.distill", job_name="fitb-distill")
    parser.add_argument(
        "--chain",
        type=int,
        default=0,
        help="submit this many jobs with dependencies, instead of one that is requeued",
    )
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="check every host before the tasks start, and requeue without the bad ones",
    )
    parser.add_argument(
        "--torchrun",
        action="store_true",
        default=None,  # the site's FITB_LAUNCHER decides
        help="one task per host, in which torchrun starts --tasks_per_node processes",
    )
    return parser


def distill(where: argparse.Namespace, flags: Sequence[str]) -> int:
    """Submit a distillation and print its jobs; with `wait`, return its exit code."""
    if where.dry_run:
        print(plan_distill(flags, where).render(), end="")
        return FINISHED
    jobs, run_dir = submit_distill(flags, where)
    for job in jobs:
        print(f"job {job.job_id} in {run_dir}, log of rank 0: {job.paths.stderr}", flush=True)
    return wait_for(jobs[-1], run_dir) if where.wait else FINISHED


def sweep_arguments() -> LauncherArguments:
    """Build the parser of the launcher arguments of a sweep."""
    parser = distill_arguments()
    parser.set_defaults(job_name="fitb-sweep")
    return parser


def sweep(where: argparse.Namespace, flags: Sequence[str]) -> int:
    """Submit a job for each run of a sweep that is not finished; with `wait`, print the table."""
    planned = plan_sweep(flags, where.job_name)
    members = range(len(planned.members))
    checked = [plan_distill(planned.words(index), where) for index in members]
    if where.dry_run:
        print(checked[0].render(), end="")
        print(f"# -- and {len(members) - 1} more: {', '.join(planned.names()[1:])}")
        return FINISHED
    planned.record()
    submitted = []
    for index, member in enumerate(checked):
        run_dir = Path(member.config.run_dir)
        over = already_over(run_dir, source=Source(), steps=member.config.steps)
        if over and over.exit_code == FINISHED:
            print(f"{run_dir} is finished", flush=True)
            continue
        if active := jobs_of(run_dir):
            print(f"{run_dir} has job {', '.join(active)}", flush=True)
            continue
        jobs, _ = submit_distill(planned.words(index), where)
        print(f"job {', '.join(job.job_id for job in jobs)} in {run_dir}", flush=True)
        submitted.append((jobs[-1], run_dir))
    if not where.wait:
        return FINISHED
    worst = max([wait_for(job, run_dir) for job, run_dir in submitted], default=FINISHED)
    shards = checked[0].config.data.shards
    return worst or CommandJob(("sweep", str(planned.folder), "--shards", shards))()


def jobs_of(run_dir: Path) -> list[str]:
    """Return id and state of the submitit jobs of a run that Slurm has not ended."""
    found = []
    for path in sorted((run_dir / LOGS).glob("*_submission.sh")):
        job = path.name.removesuffix("_submission.sh")
        state = reported_state(job)
        if state and state not in ENDED:
            found.append(f"{job} ({state})")
    return found


def evaluate_arguments() -> LauncherArguments:
    """Build the parser of the launcher arguments of an evaluation."""
    parser = resource_parser(
        "python -m launch.evaluate", job_name="fitb-evaluate", signal_delay_s=0
    )
    parser.add_argument(
        "--array", type=int, default=1, help="number of tasks that share the --models"
    )
    return parser


def evaluate(where: argparse.Namespace, flags: Sequence[str]) -> int:
    """Submit an evaluation and print its jobs; with `wait` and --out, print the table too."""
    where.nodes = where.tasks_per_node = 1
    config = parse(EvaluateConfig, where.launcher.prog, flags, launcher=where.launcher)
    check_array(config, where.array)
    shares = [f"{number}/{where.array}" for number in range(where.array)]
    share = [["--share", each] for each in shares] if where.array > 1 else [[]]
    tasks = [CommandJob(("evaluate", *flags, *words)) for words in share]
    executor = make_executor(where, Path(default_run_dir(where.job_name)).absolute() / "logs")
    if where.dry_run:
        script = script_of(executor, where.array)
        print(f"{script.rstrip()}\n\n# -- fitb evaluate\n{to_yaml(config)}", end="")
        return FINISHED
    jobs = submit_tasks(executor, tasks)
    for job in jobs:
        print(f"job {job.job_id}, log: {job.paths.stdout}", flush=True)
    if not where.wait:
        return FINISHED
    worst = max(wait_for(job) for job in jobs)
    return worst or (CommandJob(("evaluate", *flags))() if config.out else FINISHED)
