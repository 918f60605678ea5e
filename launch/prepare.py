"""Prepare shards through submitit: python -m launch.prepare [where] [flags of `fitb prepare`]"""

import sys

from fitb.cluster.submit import launch_command

if __name__ == "__main__":
    sys.exit(launch_command("prepare", sys.argv[1:]))
