"""Evaluate through submitit: python -m launch.evaluate [launcher arguments] [its other flags]

python -m launch.evaluate --model runs/tb4/export --shards data/shards
python -m launch.evaluate --array 10 --wait --models+='runs/tb4/checkpoints/step-*' --out evals

All other flags are those of `fitb evaluate`. Code: fitb/cli/launchers.py.
"""

import sys

from fitb.cli import main

if __name__ == "__main__":
    sys.exit(main(["launch.evaluate", *sys.argv[1:]]))
