"""Distil through submitit: python -m launch.distill [where] [flags of `fitb train`]

    python -m launch.distill --nodes 4 --tasks_per_node 8 --gpus_per_node 8 --config tinybert4
    python -m launch.distill --cluster local --tasks_per_node 2 --wait --config tinybert4
    python -m launch.distill --nodes 4 --chain 8 ...      # where a site forbids requeueing
    python -m launch.distill --nodes 4 --dry-run ...      # print the script, submit nothing

slurm/site.env, if there is one, says what the site needs (`fitb site init` writes it).
A run that another front began goes on here if --run_dir is its folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fitb.cluster.executor import resource_parser
from fitb.cluster.submit import plan_distill, submit_distill, wait_for
from fitb.errors import FINISHED, FitbError


def main(args: Sequence[str]) -> int:
    parser = resource_parser(
        "python -m launch.distill",
        "Submit a distillation. Every other flag is one of `fitb train`; the run directory is"
        " runs/JOB_NAME unless --run_dir says otherwise.",
        job_name="fitb-distill",
        nodes=1,
    )
    parser.add_argument(
        "--chain",
        type=int,
        default=0,
        help="submit this many jobs, one after another, in place of one that is requeued",
    )
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="look at every host before the tasks start, and come back without the bad ones",
    )
    parser.add_argument(
        "--torchrun",
        action="store_true",
        default=None,  # FITB_LAUNCHER of the site may say so
        help="one task on each host, in which torchrun starts its --tasks_per_node processes",
    )
    where, flags = parser.parse_known_args([word for word in args if word != "--"])
    try:
        if where.dry_run:
            print(plan_distill(flags, where).render(), end="")
            return FINISHED
        jobs, run_dir = submit_distill(flags, where)
        for job in jobs:
            print(f"job {job.job_id} in {run_dir}, log of rank 0: {job.paths.stderr}", flush=True)
        return wait_for(jobs[-1], run_dir) if where.wait else 0
    except FitbError as error:
        print(f"fitb: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
