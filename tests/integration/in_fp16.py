"""`python in_fp16.py COMMAND ...` is `fitb COMMAND ...` on a CPU that computes fp16 in software.

The arithmetic, DeepSpeed's loss scale and its skipped steps are the real ones; only the answer to
whether this processor is made for fp16 is changed, and it is slow.
"""

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

from deepspeed.accelerator import get_accelerator

type(get_accelerator()).is_fp16_supported = lambda self: True

if __name__ == "__main__":
    from fitb.cli import main

    sys.exit(main(sys.argv[1:]))
