"""The watch of three ranks, real processes that talk through gloo, without a training."""

import subprocess
import sys

import pytest

from fitb.base import fsio

# The parent has imported torch; each rank then does what its case says.
CODE = """
import ctypes, os, signal, sys, time
from pathlib import Path
import torch.distributed as dist
from fitb.cluster.local import hold_port
from fitb.training import liveness
from fitb.rundir.writer import RunDir
from fitb.base.world import World

run_dir, case = Path(sys.argv[1]), sys.argv[2]
liveness.PING_S, liveness.SILENCE_S = 0.1, 2.0
liveness.LAST_WORDS_S, liveness._SUSPENDED_S = 0.5, 1.0
liveness.ownership.HEARTBEAT_S = 0.2
suspended = ("suspend", "debug", "skew")
if case in ("held", *suspended):
    liveness.SILENCE_S = 20.0  # as much longer than the rest as it is

def child(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=3)
    world = World(rank, 3)
    def ended(code):
        (run_dir / f"end-{rank}").write_text(str(code))

    deadline_s = {"hang": 3.0, "held": 3.0, **dict.fromkeys(suspended, 6.0)}.get(case, 60.0)
    outside = liveness.Watchdog(deadline_s)
    seen = liveness.Watch(RunDir(run_dir, 1, world), world, deadline_s, outside, ended)
    seen.moved(1)
    if case == "freeze" and rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    if case == "refuse" and rank == 2:
        seen.close(93)
        os._exit(93)
    if case == "die" and rank == 0:
        os._exit(9)
    if case in suspended:
        time.sleep(2)
    if case in ("good", *suspended):
        time.sleep(rank / 2)
        seen.close(85)
        os._exit(85)
    if case == "held" and rank == 1:
        while not list((run_dir / "attempts" / "0001").glob("rank-00001.json")):
            time.sleep(0.1)
        time.sleep(1)
        ctypes.PyDLL(None).read(os.pipe()[0], ctypes.c_char(), 1)  # and keeps the interpreter
    while True:
        if case != "hang":
            seen.moved(2)
        time.sleep(0.05)

held, pids = hold_port(), []
for rank in range(3):
    pid = os.fork()
    if pid == 0:
        child(rank, held.getsockname()[1])
    pids.append(pid)
def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def send(number, pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        watchdogs = [] if case == "debug" else map(int, file.read().split())
    for each in (pid, *watchdogs):
        os.kill(each, number)

if case in suspended:
    time.sleep(1)
    for number, wait_s in ((signal.SIGSTOP, 8), (signal.SIGCONT, 0)):
        for pid in pids:
            send(number, pid)
            time.sleep(1.2 if case == "skew" and pid == pids[1] else 0.2)
        time.sleep(wait_s)
codes = [wait(pid) for pid in pids if (case, pid) != ("freeze", pids[1])]
if case == "freeze":
    os.kill(pids[1], signal.SIGKILL)
    codes.insert(1, wait(pids[1]))
print(*codes)
"""
# Exit codes, what rank 0 wrote of a rank that was lost, and which ranks left their stacks.
CASES = {
    "good": ("85 85 85", [], []),
    "suspend": ("85 85 85", [], []),  # longer than the deadline, as a scheduler does
    "debug": ("85 85 85", [], []),  # without their watchdogs
    "skew": ("85 85 85", [], []),  # one later than the others, and for longer
    "held": ("1 -9 1", [(1, "is gone")], [0, 2]),
    "freeze": ("1 -9 1", [(1, "has not been heard of for 2 s")], [0, 2]),
    "refuse": ("93 93 93", [(2, "left with exit code 93")], [0, 1]),
    "die": ("9 1 1", [], [1, 2]),  # rank 0 would write
    "hang": ("1 1 1", None, [0, 1, 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_ranks_end_together_and_say_why(tmp_path, case):
    codes, lost, dumped = CASES[case]
    for folder in ("logs", "checkpoints/.0001", "attempts/0001"):
        (tmp_path / folder).mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), case],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == codes, done.stderr[-3000:]
    events = [e for e in fsio.read_lines(tmp_path / "events.jsonl") if e["event"] != "first_step"]
    found = [(event["event"], event["rank"], event["reason"]) for event in events]
    if lost is None:  # rank 0 hung, or another that told it
        ((name, rank, reason),) = found
        assert name == "hang" and reason.startswith(f"rank {rank} made no step")
        assert events[0]["step"] == 1
    else:
        assert found == [("lost_rank", rank, f"rank {rank} {said}") for rank, said in lost]
    ends = sorted(path.name for path in tmp_path.glob("end-*"))
    assert ends == [f"end-{rank}" for rank in dumped]
    stacks = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert stacks == [f"stacks-0001-rank-{rank:05d}.txt" for rank in dumped]
    for name in stacks:
        assert "in child" in (tmp_path / "logs" / name).read_text()
    if case == "held":
        (words,) = (tmp_path / "attempts" / "0001").glob("words-*")
        assert words.name == "words-rank-00001.txt" and "interpreter" in words.read_text()
        assert "in child" in done.stderr  # the stacks
    if case != "freeze":  # which may come first
        assert len(list((tmp_path / "attempts" / "0001").glob("rank-*.json"))) == 3
