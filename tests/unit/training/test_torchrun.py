"""torchrun as fitb starts it: real agents, and ranks that are scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fitb.cluster.local import hold_port

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 120

# Told what to do by $ENDS, a word a rank: a code, KILL, or wait until USR1 comes.
RANK = """#!/usr/bin/env bash
trap 'touch "$FOLDER/told.$RANK"; exit 85' USR1
trap '' TERM
printf '%s\\n' "$RANK $WORLD_SIZE $LOCAL_RANK $MASTER_ADDR $*" >>"$FOLDER/started.$RANK"
words=($ENDS)
case ${words[$RANK]} in wait) ;; KILL) kill -KILL $$ ;; *) exit "${words[$RANK]}" ;; esac
for _ in {1..600}; do sleep 0.05; done
"""


@pytest.fixture
def agents(tmp_path):
    """Start agents, each in the place of a task of Slurm; end what is left of them."""
    started = []
    rank = tmp_path / "rank"
    rank.write_text(RANK)
    rank.chmod(0o755)
    held = hold_port()
    port = str(held.getsockname()[1])

    def start(ends, nodes=1, node=0, processes=2):
        env = os.environ | {
            "PYTHON_EXEC": str(rank),  # torchrun's own name for the interpreter of the ranks
            "PYTHONPATH": str(ROOT),
            "FOLDER": str(tmp_path),
            "ENDS": ends,
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "SLURM_NNODES": str(nodes),
            "SLURM_NODEID": str(node),
            "FITB_PROCESSES_PER_NODE": str(processes),
        }
        command = [sys.executable, "-m", "fitb.training.torchrun", "--steps", "3"]
        started.append(subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for agent in started:
        agent.kill()
        agent.wait()
    held.close()


def test_ranks_of_two_hosts_are_numbered_as_srun_does_and_leave_together_with_their_code(
    tmp_path, agents
):
    hosts = [agents("wait wait wait", 2, node, 2 - node) for node in (0, 1)]
    files = [tmp_path / f"started.{rank}" for rank in range(3)]
    deadline = time.monotonic() + TIMEOUT_S
    while not all(file.exists() and file.read_text().endswith("\n") for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lines = [file.read_text().strip() for file in files]
    assert lines == [
        f"{rank} 3 {local} 127.0.0.1 -u -m fitb train --steps 3"
        for rank, local in ((0, 0), (1, 1), (2, 0))
    ]
    for host in hosts:
        host.send_signal(signal.SIGUSR1)
        host.send_signal(signal.SIGUSR1)  # once more changes nothing
    assert [host.wait(TIMEOUT_S) for host in hosts] == [85, 85]
    assert all((tmp_path / f"told.{rank}").exists() for rank in range(3))


@pytest.mark.parametrize(("ends", "code"), [("0 0", 0), ("93 93", 93), ("0 KILL", 137)])
def test_code_of_the_ranks_is_the_code_of_the_task_and_none_starts_again(
    agents, tmp_path, ends, code
):
    assert agents(ends).wait(TIMEOUT_S) == code
    lines = [path.read_text().splitlines() for path in tmp_path.glob("started.*")]
    assert {len(each) for each in lines} == {1}
