"""The restart decision, under the name that jobs of earlier versions and copied scripts call."""

import sys

from fitb.rundir.restart import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
