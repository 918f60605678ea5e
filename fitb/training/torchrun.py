"""torchrun for one host: start its ranks, forward signals to them, and keep their exit code.

Each task runs `python -m fitb.training.torchrun [flags of fitb train]`. Plain torchrun dies of
SIGUSR1, or exits with 1 if told to catch it, and exits with 1 whatever code a rank returned; a
scheduler needs both. So signals are forwarded to the ranks, and this process exits with the code of
the first rank that failed. Ranks are never restarted: that is decided in fitb.rundir.restart. Read
from the environment: SLURM_NNODES, SLURM_NODEID, FITB_PROCESSES_PER_NODE, MASTER_ADDR, MASTER_PORT.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import psutil

from fitb.base import signals
from fitb.base.errors import FINISHED


def _arguments(flags: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Return torchrun's command line; ranks are numbered host by host, as by srun."""
    return [
        f"--nnodes={env.get('SLURM_NNODES', '1')}",
        f"--node-rank={env.get('SLURM_NODEID', '0')}",
        f"--nproc-per-node={env.get('FITB_PROCESSES_PER_NODE', '1')}",
        "--rdzv-backend=static",
        f"--rdzv-id=fitb-{env.get('SLURM_JOB_ID', '0')}",
        f"--master-addr={env.get('MASTER_ADDR', '127.0.0.1')}",
        f"--master-port={env.get('MASTER_PORT', '29500')}",
        "--max-restarts=0",
        "--signals-to-handle=SIGHUP,SIGQUIT",  # we handle the others
        f"--log-dir={os.devnull}",  # ranks write to the output of this process
        "--module",
        "fitb",
        "train",
        *flags,
    ]


def main(flags: Sequence[str]) -> int:
    """Run the ranks of this host; return FINISHED, or the exit code of the first that failed."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for number in signals.SHUTDOWN:
        signal.signal(number, _forward)
    agent: Any = torchrun
    try:
        agent.run(agent.parse_args(_arguments(flags, os.environ)))
    except ChildFailedError as error:
        # The agent terminates the others once one has failed: only its code tells why.
        code = int(error.get_first_failure()[1].exitcode)
        return code if code >= 0 else 128 - code
    return FINISHED


def _forward(number: int, frame: FrameType | None) -> None:
    """Forward a signal to the ranks, not to their children; exit if there are no ranks yet."""
    ranks = psutil.Process().children()
    for rank in ranks:
        if rank.is_running():
            rank.send_signal(number)
    if not ranks:
        os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
