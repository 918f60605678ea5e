"""Prepare shards as Slurm arrays: python -m launch.prepare [launcher arguments] [other flags]

All other flags are those of `fitb prepare`. Code: fitb/corpus/slurm_stages.py.
"""

import sys

from fitb.cli import main

if __name__ == "__main__":
    sys.exit(main(["launch.prepare", *sys.argv[1:]]))
