"""Distil through submitit: python -m launch.distill [launcher arguments] [flags of `fitb train`]

    python -m launch.distill --nodes 4 --tasks_per_node 8 --gpus_per_node 8 --config tinybert4
    python -m launch.distill --cluster local --tasks_per_node 2 --wait --config tinybert4
    python -m launch.distill --nodes 4 --chain 8 ...      # where a site forbids requeueing
    python -m launch.distill --nodes 4 --dry-run ...      # print the script, submit nothing

slurm/site.env, if there is one, says what the site needs (`fitb site init` writes it).
A run that was launched another way goes on here if --run_dir is its folder. The code is
fitb/cli/launchers.py and fitb/cluster/submit.py.
"""

import sys

from fitb.cli import main

if __name__ == "__main__":
    sys.exit(main(["launch.distill", *sys.argv[1:]]))
