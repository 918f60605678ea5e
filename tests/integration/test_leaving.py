"""How a process ends after its last collective."""

from __future__ import annotations

import subprocess
import sys

PAIRS = 12
# The parent has imported torch; each pair of children talks, leaves and ends as a training does:
# the group still referenced, as DeepSpeed keeps it, and an interpreter that takes long to end.
CODE = f"""
import builtins, gc, os, sys
import torch, torch.distributed as dist
from fitb.cluster.local import hold_port
from fitb.training.zero import leave_distributed

def child(rank, port):
    sys.setswitchinterval(1000)  # the main thread lets another run only where it waits
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    gc.disable()
    builtins.held, builtins.slow = dist.group.WORLD, [[i] for i in range(300_000)]
    for _ in range(200):
        dist.broadcast(torch.zeros(1000), 0)
    tensor = torch.zeros(100_000)
    tensor.of_python = True
    dist.broadcast(tensor, 0)
    del tensor
    leave_distributed()

torch.set_num_threads(1)
ended = []
for _ in range({PAIRS}):
    held, pids = hold_port(), []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            child(rank, held.getsockname()[1])
            sys.exit(0)
        pids.append(pid)
    ended += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
print(ended)
"""


def test_a_rank_that_has_left_does_not_abort_while_its_interpreter_ends():
    """One process in eight did: gloo's threads held a tensor that needs the interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.strip() == str([0] * 2 * PAIRS), done.stderr[-2000:]
