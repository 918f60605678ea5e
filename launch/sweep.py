"""Sweep through submitit: python -m launch.sweep --grid.KEY '[...]' [launcher arguments] [flags]

    python -m launch.sweep --grid.optim.lr '[1e-4, 3e-4]' --nodes 2 --config tinybert4
    python -m launch.sweep --random 8 --grid.optim.lr '{low: 1e-5, high: 1e-3, log: true}' ...

All other flags are those of `fitb train`. The same command again submits what is not finished.
Code: fitb/cli/launchers.py, fitb/cluster/sweep.py.
"""

import sys

from fitb.cli import main

if __name__ == "__main__":
    sys.exit(main(["launch.sweep", *sys.argv[1:]]))
