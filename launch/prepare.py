"""Prepare shards as Slurm arrays: python -m launch.prepare [where] [flags of `fitb prepare`]"""

import sys

from fitb.prepare.slurm import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
