"""Evaluate through submitit: python -m launch.evaluate [where] [flags of `fitb evaluate`]

python -m launch.evaluate --model runs/tb4/export --shards data/shards
python -m launch.evaluate --array 10 --wait --models+='runs/tb4/checkpoints/step-*' --out evals
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fitb.cluster.arrays import CommandJob, submit_tasks
from fitb.cluster.executor import make_executor, resource_parser, script_of
from fitb.cluster.slurm import default_run_dir
from fitb.cluster.submit import wait_for
from fitb.config_io import to_yaml
from fitb.errors import FINISHED, FitbError
from fitb.evaluate.evaluate_config import EvaluateConfig
from fitb.evaluate.folder import check_array
from fitb.flags import parse
from fitb.front import FrontParser


def front() -> FrontParser:
    parser = resource_parser(
        "python -m launch.evaluate", job_name="fitb-evaluate", signal_delay_s=0
    )
    parser.add_argument(
        "--array", type=int, default=1, help="tasks that share the --models among them"
    )
    return parser


def main(args: Sequence[str]) -> int:
    try:
        where, flags = front().split(args)
        where.nodes = where.tasks_per_node = 1
        config = parse(EvaluateConfig, "python -m launch.evaluate", flags)
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
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
