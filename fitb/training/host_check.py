"""Preflight checks of one host: devices, disks, memory, and the network to the other hosts.

`python -m fitb.training.host_check FOLDER HOSTS RUN_DIR [CACHE_DIR]` runs once on each host,
started by fitb.cluster.preflight, and writes FOLDER/HOST.json. Each check runs in its own process
with a deadline, because a faulty driver, filesystem or network hangs or kills whoever uses it.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
import torch.distributed as dist

from fitb.base import log, signals
from fitb.base.errors import RESUME, FitbError, SystemFault
from fitb.base.fsio import write_json
from fitb.base.rendezvous import unreachable
from fitb.base.world import address_of, starts_of
from fitb.cluster.preflight import ALL_OWN_S, GPU_S, START_S, link_deadline_s, pair_rounds
from fitb.cluster.slurm import master_port, num_gpus
from fitb.training.devices import num_promised

logger = logging.getLogger("fitb.training.host_check")  # run as a script it has another name

OWN_S = 30.0  # deadline of each check that needs no other host; more with GPUs
MIN_DISK_GB = 1.0
MIN_MEMORY_GB = 1.0
PROBE_MB = 1
FIRST_RESTART = 1_000  # restart counts whose ports no training of the job uses
_fork = multiprocessing.get_context("fork")


def within(deadline_s: float, check: Callable[..., Any], *args: Any) -> Any:
    """Run a check in a child process and return its result.

    Args:
        deadline_s: seconds after which the child is killed.
        check: function to call with `args`.
    Raises: SystemFault with the check's error, or if it is late or its process dies.
    """
    reader, writer = _fork.Pipe(duplex=False)
    process = _fork.Process(target=_run_check, args=(writer, check, args), daemon=True)
    process.start()
    writer.close()
    try:
        if not reader.poll(deadline_s):
            raise SystemFault(f"not done in {deadline_s:g} s")
        error, value = reader.recv()
    except EOFError:
        raise SystemFault("its process ended without an answer") from None
    finally:
        process.kill()
    if error:
        raise SystemFault(error)
    return value


def _run_check(writer: Connection, check: Callable[..., Any], args: Sequence[Any]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # thread pools do not survive a fork
    try:
        writer.send((None, check(*args)))
    except FitbError as error:
        writer.send((str(error), None))
    except Exception as error:
        writer.send((f"{type(error).__name__}: {error}".splitlines()[0], None))
    writer.close()
    os._exit(0)  # threads of a failed process group may wait for the network


def check_devices(env: Mapping[str, str]) -> None:
    """Check an integer matmul on every device of the host.

    Raises: SystemFault if a device is missing or its result is wrong.
    """
    wanted = num_promised(env)
    seen = torch.cuda.device_count()
    if seen < wanted:
        raise SystemFault(f"{seen} GPUs are visible; Slurm shows {wanted} of this host")
    numbers = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64) % 7
    exact = (numbers.long() @ numbers.long()).float()
    for name in [f"cuda:{i}" for i in range(seen)] or ["cpu"]:
        product = (numbers.to(name) @ numbers.to(name)).cpu()
        if not torch.equal(product, exact):
            raise SystemFault(f"{name} computes a wrong matmul")


def check_disk(folder: str) -> None:
    """Check free space, and write and remove a file.

    Args:
        folder: where the run, the cache or temporary files go.
    Raises: SystemFault if too little space is free; OSError.
    """
    free_gb = psutil.disk_usage(folder).free / 1e9
    if free_gb < MIN_DISK_GB:
        raise SystemFault(f"{free_gb:.3f} GB are free, expected {MIN_DISK_GB:g}")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".fitb-preflight-") as file:
        file.write(os.urandom(PROBE_MB << 20))
        file.flush()
        os.fsync(file.fileno())


def check_memory() -> None:
    """Raise SystemFault if too little memory is free."""
    free_gb = psutil.virtual_memory().available / 1e9
    if free_gb < MIN_MEMORY_GB:
        raise SystemFault(f"{free_gb:.2f} GB of memory are free, expected {MIN_MEMORY_GB:g}")


def own_failures(run_dir: str, cache_dir: str | None, env: Mapping[str, str]) -> list[str]:
    """Return the failures of the checks that need no other host, each as `check: why`."""
    temporary = env.get("TMPDIR") or tempfile.gettempdir()  # gettempdir skips a full disk
    folders = [run_dir, cache_dir or env.get("SLURM_TMPDIR"), temporary]
    checks: dict[str, tuple[Any, ...]] = {
        "devices": (check_devices, env),
        "memory": (check_memory,),
        **{f"disk {f}": (check_disk, f) for f in dict.fromkeys(filter(None, folders))},
    }
    failures = []
    more_s = GPU_S * num_gpus(env)
    deadline = time.monotonic() + ALL_OWN_S + more_s
    for name, check in checks.items():
        try:
            within(min(OWN_S + more_s, max(0.0, deadline - time.monotonic())), *check)
        except SystemFault as error:
            failures.append(f"{name}: {error}")
    return failures


def meet(rank: int, size: int, address: str, port: int, deadline_s: float) -> bool:
    """Wait at a barrier until all hosts have connected to rank 0; return whether they have.

    It uses plain sockets: the network between devices is tested afterwards.

    Args:
        rank: place of this host, from 0.
        size: number of hosts.
        address: host name of rank 0.
        port: port on which rank 0 listens.
        deadline_s: seconds to wait.
    """
    deadline = time.monotonic() + deadline_s
    with contextlib.ExitStack() as stack:
        try:
            if rank == 0:
                server = stack.enter_context(socket.create_server(("", port), backlog=size))
                peers = []
                for _ in range(size - 1):
                    server.settimeout(max(0.01, deadline - time.monotonic()))
                    peers.append(stack.enter_context(server.accept()[0]))
                for peer in peers:
                    peer.sendall(b"g")
                return True
            while True:
                left_s = max(0.01, deadline - time.monotonic())
                try:
                    peer = socket.create_connection((address, port), timeout=left_s)
                    break
                except (ConnectionError, socket.gaierror):  # not listening yet
                    if time.monotonic() > deadline:
                        return False
                    time.sleep(0.05)
            stack.enter_context(peer).settimeout(max(0.01, deadline - time.monotonic()))
            return peer.recv(1) == b"g"
        except OSError:
            return False


def reduce(rank: int, size: int, address: str, port: int, deadline_s: float) -> float:
    """All-reduce one number over the hosts with the backend that training uses.

    Returns: this host's clock right after the reduction, Unix time in seconds.
    Raises: SystemFault if the sum is wrong; whatever torch raises if the reduction fails.
    """
    gpus = torch.cuda.is_available()
    dist.init_process_group(
        "nccl" if gpus else "gloo",
        init_method=f"tcp://{address}:{port}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=deadline_s),
    )
    number = torch.full((1 << 18,), float(rank + 1), device="cuda:0" if gpus else "cpu")
    dist.all_reduce(number)
    last = float(number[-1])
    clock_s = time.time()
    if last != size * (size + 1) / 2:
        raise SystemFault(f"the sum over {size} hosts is {last:g}")
    return clock_s


def network(hosts: Sequence[str], me: str, env: Mapping[str, str]) -> dict[str, Any]:
    """All-reduce over all hosts and, if that fails, with each neighbour.

    Returns: `reduced`, `pairs` (neighbour -> whether it worked) and `clock_s`; and `unreachable`,
        the reason, if this host's name resolves to an address that others cannot reach.
    """
    if why := unreachable(env):
        return {"reduced": False, "pairs": {}, "clock_s": None, "unreachable": why}
    rank, size, link_s = hosts.index(me), len(hosts), link_deadline_s(env)
    job, (restart, start) = int(env["SLURM_JOB_ID"]), starts_of(env)

    def port(number: int) -> int:
        return master_port(job, FIRST_RESTART + 16 * restart + number, start)

    first = address_of(hosts[0], env)
    met = meet(rank, size, first, port(0), START_S + GPU_S * num_gpus(env))
    try:
        clock_s = within(link_s, reduce, rank, size, first, port(1), link_s)
        return {"reduced": True, "pairs": {}, "clock_s": clock_s}
    except SystemFault as error:
        logger.error("all hosts: %s", error)
    pairs: dict[str, bool] = {}
    for number, pairs_now in enumerate(pair_rounds(size), 1):
        # A host that has missed one barrier is given up. One without a pair in the previous round
        # waits for those that used up their deadline.
        met = met and meet(rank, size, first, port(2 * number), 2 * link_s)
        for pair in (pair for pair in pairs_now if rank in pair):
            other = hosts[pair[1] if pair[0] == rank else pair[0]]
            try:
                where = (address_of(hosts[pair[0]], env), port(2 * number + 1), link_s)
                within(link_s, reduce, pair.index(rank), 2, *where)
                pairs[other] = True
            except SystemFault as error:
                logger.error("with %s: %s", other, error)
                pairs[other] = False
    return {"reduced": False, "pairs": pairs, "clock_s": None}


def main(folder: str, hosts: str, run_dir: str, cache_dir: str | None = None) -> None:
    me = os.environ["SLURMD_NODENAME"]
    log.setup()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        os._exit(RESUME)  # preempted: not a fault of this host

    for number in signals.BY_SCHEDULER:
        signal.signal(number, on_signal)
    failures = own_failures(run_dir, cache_dir, os.environ)
    found = {"reduced": True, "pairs": {}, "clock_s": None}
    if "," in hosts:
        found = network(hosts.split(","), me, os.environ)
    write_json(Path(folder) / f"{me}.json", {"host": me, "failures": failures, **found})
    for failure in failures:
        logger.error("%s", failure)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # do not wait for checks that hang
