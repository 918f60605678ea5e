"""torchrun, one to a host: its agent starts the ranks, and they leave as they do under srun.

`python -m fitb.training.torchrun [flags of fitb train]` is what a task runs, not `fitb train`. By
itself torchrun dies of SIGUSR1; told to catch it, it ends with 1 after its ranks were told; and it
ends with 1 whatever code a rank gave. The scheduler reads codes, so here the agent, which is
torch's own, passes signals on and works on, and this process ends with the code of the rank that
ended first. It never restarts ranks: fitb.rundir.restart decides. The environment says where:
SLURM_NNODES, SLURM_NODEID, FITB_PROCESSES_PER_NODE, MASTER_ADDR, MASTER_PORT.
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


def arguments(flags: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Return what torchrun is told.

    Ranks are numbered host by host, as srun numbers them.

    Args:
        flags: of `fitb train`.
    """
    return [
        f"--nnodes={env.get('SLURM_NNODES', '1')}",
        f"--node-rank={env.get('SLURM_NODEID', '0')}",
        f"--nproc-per-node={env.get('FITB_PROCESSES_PER_NODE', '1')}",
        "--rdzv-backend=static",
        f"--rdzv-id=fitb-{env.get('SLURM_JOB_ID', '0')}",
        f"--master-addr={env.get('MASTER_ADDR', '127.0.0.1')}",
        f"--master-port={env.get('MASTER_PORT', '29500')}",
        "--max-restarts=0",
        "--signals-to-handle=SIGHUP,SIGQUIT",  # the others are ours
        f"--log-dir={os.devnull}",  # of torch's own files; ranks write where this process does
        "--module",
        "fitb",
        "train",
        *flags,
    ]


def main(flags: Sequence[str]) -> int:
    """Run the ranks of this host; return FINISHED or the code of the first that ended otherwise."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for number in signals.SHUTDOWN:
        signal.signal(number, _pass_on)
    agent: Any = torchrun
    try:
        agent.run(agent.parse_args(arguments(flags, os.environ)))
    except ChildFailedError as error:
        # The agent ends the others as soon as one has ended: its code alone tells why.
        code = int(error.get_first_failure()[1].exitcode)
        return code if code >= 0 else 128 - code
    return FINISHED


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Tell the ranks, and nothing that they have started; before they are there, just end."""
    ranks = psutil.Process().children()
    for rank in ranks:
        if rank.is_running():
            rank.send_signal(number)
    if not ranks:
        os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
