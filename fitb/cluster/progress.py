"""Old name of fitb.rundir.restart, for waiting jobs and copied batch scripts."""

import sys

from fitb.rundir.restart import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
