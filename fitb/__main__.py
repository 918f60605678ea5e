"""`python -m fitb` is `fitb`."""

import sys

from fitb.cli import main

sys.exit(main())
