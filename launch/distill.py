"""Distil through submitit: python -m launch.distill [launcher arguments] [flags of `fitb train`]

    python -m launch.distill --nodes 4 --tasks_per_node 8 --gpus_per_node 8 --config tinybert4
    python -m launch.distill --cluster local --tasks_per_node 2 --wait --config tinybert4
    python -m launch.distill --nodes 4 --chain 8 ...      # if the site forbids requeueing
    python -m launch.distill --nodes 4 --dry-run ...      # print the script, submit nothing

Settings of the site come from slurm/site.env (written by `fitb site init`). --run_dir also resumes
a run that was launched another way. Code: fitb/cli/launchers.py, fitb/cluster/submit.py.
"""

import sys

from fitb.cli import main

if __name__ == "__main__":
    sys.exit(main(["launch.distill", *sys.argv[1:]]))
