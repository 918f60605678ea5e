from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

import pytest

from fitb.base import signals
from fitb.cluster.local import LocalRun, common_code, forwarding, hold_port, malloc_settings

JOB = """
import os, signal, sys, time
rank, folder = os.environ["RANK"], sys.argv[1]
got = []
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
    signal.signal(number, lambda number, frame: got.append(number))
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "MALLOC_MMAP_MAX_")
open(f"{folder}/{rank}", "w").write(" ".join(os.environ.get(name, "none") for name in names))
print("rank", rank, "speaks", flush=True)
"""
WAIT_FOR_SIGNAL = "while not got: time.sleep(0.01)\nsys.exit(60 + got[0])\n"
TIMEOUT_S = 60


def command(folder, ending):
    return [sys.executable, "-c", JOB + ending, str(folder)]


def wait_for_ranks(folder, num_ranks):
    deadline = time.monotonic() + TIMEOUT_S
    while sum(file.stat().st_size > 0 for file in folder.iterdir()) < num_ranks:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ranks_get_their_environment_and_rank_0_the_output(tmp_path, capfd):
    with LocalRun(command(tmp_path, "sys.exit(85)"), 3) as run:
        assert run.wait(TIMEOUT_S) == 85
    seen = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [words[:4] for words in seen] == [[str(r), "3", str(r), "127.0.0.1"] for r in range(3)]
    assert len({words[4] for words in seen}) == 1
    assert {words[5] for words in seen} == {malloc_settings().get("MALLOC_MMAP_MAX_", "none")}
    assert capfd.readouterr().out == "rank 0 speaks\n"


def test_nobody_takes_the_port_of_a_job_before_its_rank_0_listens():
    """It was looked up, given up and bound again 10 s later; another process could have it then."""
    with hold_port() as held, socket.socket() as stranger:
        with pytest.raises(OSError, match="in use"):
            stranger.bind(held.getsockname())
        with socket.create_server(held.getsockname()) as rank_0:
            assert rank_0.getsockname() == held.getsockname()


@pytest.mark.parametrize(
    ("codes", "common"),
    [([0, 0], 0), ([85, 85], 85), ([93, 93], 93), ([1, 137], 1), ([85, 1], 1), ([0, 85], 85)],
)
def test_common_code_is_the_one_that_explains_the_end(codes, common):
    assert common_code(codes) == common


def test_rank_that_crashes_takes_the_others_down_and_its_words_are_shown(tmp_path, capfd):
    ending = "if rank == '1': sys.exit('out of luck')\ntime.sleep(600)"
    with LocalRun(command(tmp_path, ending), 3, crash_grace_s=0.1) as run:
        assert run.wait(TIMEOUT_S) == 1
        assert run.running() == []
    assert "rank 1 ended with 1:\nrank 1 speaks\nout of luck" in capfd.readouterr().err


def test_rank_that_stays_when_the_others_left_in_order_is_ended(tmp_path):
    ending = "if rank == '1': time.sleep(600)\nsys.exit(85)"
    with LocalRun(command(tmp_path, ending), 2, exit_grace_s=0.2) as run:
        assert run.wait(TIMEOUT_S) == 128 + signal.SIGKILL


def test_one_rank_can_be_signalled_alone(tmp_path):
    ending = """
while rank == "1" and not got: time.sleep(0.01)
if rank == "1": open(f"{folder}/told", "w")
while not os.path.exists(f"{folder}/told"): time.sleep(0.01)
sys.exit(85 if bool(got) == (rank == "1") else 1)
"""
    with LocalRun(command(tmp_path, ending), 2) as run:
        wait_for_ranks(tmp_path, 2)
        run.signal(signals.TIME_LIMIT, rank=1)
        assert run.wait(TIMEOUT_S) == 85


@pytest.mark.parametrize("number", signals.SHUTDOWN, ids=lambda n: n.name)
def test_signals_are_forwarded_to_all_ranks(tmp_path, number):
    before = signal.getsignal(number)
    with LocalRun(command(tmp_path, WAIT_FOR_SIGNAL), 2, crash_grace_s=20) as run, forwarding(run):
        wait_for_ranks(tmp_path, 2)
        os.kill(os.getpid(), number)
        assert run.wait(TIMEOUT_S) == 60 + number
    assert signal.getsignal(number) == before


def test_wait_gives_up_after_its_timeout_and_leaving_the_context_ends_all(tmp_path):
    still = pytest.raises(TimeoutError, match=r"ranks \[0, 1\] still run")
    with LocalRun(command(tmp_path, "time.sleep(600)"), 2) as run, still:
        run.wait(0.1)
    assert run.running() == []


def test_other_threads_can_run_jobs_but_forward_nothing(tmp_path):
    codes = []

    def work():
        with LocalRun(command(tmp_path, "sys.exit(0)"), 1) as run, forwarding(run):
            codes.append(run.wait(TIMEOUT_S))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(TIMEOUT_S)
    assert codes == [0]
