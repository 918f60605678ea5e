"""Evaluate through submitit: python -m launch.evaluate [where] [flags of `fitb evaluate`]"""

import sys

from fitb.cluster.submit import launch_command

if __name__ == "__main__":
    sys.exit(launch_command("evaluate", sys.argv[1:]))
