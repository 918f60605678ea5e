"""What happens to a run on a test cluster: each kind of fault, its moment, and what came of it."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path += [str(TESTS), str(TESTS / "cluster"), str(ROOT)]

from machine import run, wait_until  # noqa: E402 - after the path
from slurm_cluster import Cluster  # noqa: E402 - after the path
from wandb_server import KEY  # noqa: E402

from fitb.base.fsio import read_lines  # noqa: E402

PATIENCE_S = 300


@dataclass
class Fault:
    """A fault and what came of it.

    Args:
        kind: its name.
        graceful: whether the job is told to leave; else it is killed.
        attempt: that it hit.
        at_step: last step that this attempt had done when it ended.
        resumed_step: where the next attempt went on.
        steps_lost: done, and done again.
        recovery_s: from the fault to the first step of the next attempt, Slurm's own delays too.
        resubmitted: whether the job had to be submitted anew.
    """

    kind: str
    graceful: bool
    attempt: int = 0
    at_step: int = 0
    resumed_step: int = 0
    steps_lost: int = 0
    recovery_s: float = 0.0
    resubmitted: bool = False


@dataclass
class Soak:
    """The run under test, its cluster and its W&B.

    Args:
        cluster: a Slurm of three hosts.
        folder: of everything; `disk` in it is a small filesystem that holds the run.
        flags: of the training.
        wandb_port: where the server of W&B listens, on the bridge.
        random: of every moment and choice.
        wall_s: of its jobs that are over, from submission to end, in seconds.
    """

    cluster: Cluster
    folder: Path
    flags: list[str]
    wandb_port: int
    random: random.Random
    job: str = ""
    wall_s: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    _submitted_s: float = 0.0
    _wandb: subprocess.Popen[bytes] | None = None

    @property
    def run_dir(self) -> Path:
        return self.folder / "disk" / "run"

    # The run

    def submit(self) -> None:
        env = {
            "FITB_PYTHON": sys.executable,
            "PYTHONPATH": f"{self.folder / 'site'}:{TESTS}:{ROOT}",
            "OMP_NUM_THREADS": "1",
            "WANDB_BASE_URL": f"http://{self.cluster.subnet}.254:{self.wandb_port}",
            "WANDB_API_KEY": KEY,
        }
        options = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
        options += ["--time=60", "--signal=B:USR1@55", f"--output={self.folder / 'batch.out'}"]
        script = str(ROOT / "slurm" / "distill.sh")
        flags = [*self.flags, "--run_dir", str(self.run_dir), "--track.wandb", "online"]
        self._submitted_s = time.time()
        self.job = self.cluster.sbatch(*options, script, *flags, env=env, cwd=ROOT)

    def keep_going(self) -> bool:
        """Hurry a job that waits, submit one that is over anew; say whether the run is finished."""
        state = self.cluster.state(self.job)
        if state == "PENDING":
            self.resume_hosts()
            if "held" in self.cluster("squeue", "-h", "-j", self.job, "-o", "%r"):
                self.cluster("scontrol", "release", self.job, check=False)  # its launch failed
            self.cluster.hurry(self.job)
        elif state == "COMPLETED":
            self._over()
            return True
        elif state not in ("RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"):
            if self.faults:
                self.faults[-1].resubmitted = True
            self._over()
            self.submit()
        return False

    def _over(self) -> None:
        """Add the time of a job that has ended, once."""
        if self._submitted_s:
            ended = datetime.datetime.fromisoformat(self.cluster.show(self.job)["EndTime"])
            self.wall_s += ended.timestamp() - self._submitted_s
        self._submitted_s = 0.0

    def resume_hosts(self) -> None:
        """What an administrator does with a host that Slurm has drained.

        It drains one that comes back while processes of a job live there that it has started anew
        elsewhere ("Duplicate jobid").
        """
        for line in self.cluster("sinfo", "-h", "-N", "-o", "%N %T").splitlines():
            host, state = line.split()
            if "drain" in state:
                self.cluster("scontrol", "update", f"NodeName={host}", "State=RESUME", check=False)

    def events(self, name: str) -> list[dict[str, Any]]:
        events = read_lines(self.run_dir / "events.jsonl")
        return [event for event in events if event["event"] == name]

    def attempt(self) -> int:
        return len(self.events("attempt"))

    def first_steps(self) -> set[int]:
        """Attempts that have done a step."""
        return {event["attempt"] for event in self.events("first_step")}

    def last_step(self, attempt: int) -> int:
        """The last step that an attempt did, as its rank 0 wrote down; 0 for none."""
        path = self.run_dir / "rows" / f"{attempt:04d}-rank-00000.jsonl"
        return max((line["step"] for line in read_lines(path)), default=0)

    def hosts(self) -> list[str]:
        """Those that Slurm has given to the job."""
        given = self.cluster("squeue", "-h", "-j", self.job, "-o", "%N").strip()
        return self.cluster("scontrol", "show", "hostnames", given).split()

    def ranks(self, host: str) -> list[int]:
        """Processes of the training on a host."""
        return self.cluster.processes(host, "-m", "fitb", "train")

    def await_going(self, what: str, done: Callable[[], bool]) -> None:
        """Wait for `done`, keeping the job going."""
        deadline = time.monotonic() + PATIENCE_S
        while not done() and not self.keep_going():
            if time.monotonic() > deadline:
                print((self.folder / "batch.out").read_text()[-5000:], flush=True)
                raise TimeoutError(f"{what}: not within {PATIENCE_S} s\n{self.cluster.squeue()}")
            time.sleep(0.2)

    # W&B

    def start_wandb(self) -> None:
        where = ("--host", f"{self.cluster.subnet}.254", "--port", str(self.wandb_port))
        command = [sys.executable, str(TESTS / "wandb_server.py"), *where]
        journal = str(self.folder / "wandb.jsonl")
        self._wandb = subprocess.Popen(
            [*command, "--out", journal], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop_wandb(self) -> None:
        if self._wandb is not None:
            self._wandb.kill()
            self._wandb.wait()
            self._wandb = None

    # Faults

    def suffer(self, kind: str) -> Fault:
        """Wait for a moment, let the fault happen, wait until the run has gone on."""
        fault = Fault(kind, kind in GRACEFUL)
        self.await_going("a running job", lambda: self.cluster.state(self.job) == "RUNNING")
        if self.random.random() < 0.25 and kind not in ("network cut", "slurmd killed"):
            time.sleep(self.random.uniform(0, 8))  # somewhere in its start
        else:
            begun, steps = self.attempt(), self.random.randrange(1, 15)
            self.await_going(
                "steps",
                lambda: (
                    max(begun, self.attempt()) in self.first_steps()
                    and self.last_step(self.attempt()) >= self.begin_of(self.attempt()) + steps
                ),
            )
            time.sleep(self.random.uniform(0, 0.3))
        if self.cluster.state(self.job) == "COMPLETED":
            return fault
        fault.attempt = self.attempt()
        self.faults.append(fault)
        began = time.monotonic()
        FAULTS[kind](self)
        if kind == "wandb":
            fault.at_step = fault.resumed_step = self.last_step(fault.attempt)
            return fault
        self.await_going("the next attempt", lambda: max(self.first_steps() | {0}) > fault.attempt)
        fault.recovery_s = round(time.monotonic() - began, 1)
        fault.at_step = self.last_step(fault.attempt) or self.begin_of(fault.attempt)
        fault.resumed_step = self.begin_of(fault.attempt + 1)
        if max(self.first_steps() | {0}) <= fault.attempt:  # all steps were done before
            fault.resumed_step = fault.at_step
        fault.steps_lost = max(0, fault.at_step - fault.resumed_step)
        return fault

    def begin_of(self, attempt: int) -> int:
        """The step that an attempt began with."""
        return next((e["step"] for e in self.events("resume") if e["attempt"] == attempt), 0)


def preempt(soak: Soak) -> None:
    job = soak.cluster.preempt()

    def done() -> bool:
        soak.resume_hosts()
        return soak.cluster.state(job) == "COMPLETED"

    wait_until(done, 120, "the job that preempts")


def time_limit(soak: Soak) -> None:
    record = soak.cluster.show(soak.job)
    started = datetime.datetime.fromisoformat(record["StartTime"])
    ran_s = (datetime.datetime.now() - started).total_seconds()
    minutes = int((ran_s + 25) // 60) + 1
    limit = (f"JobId={soak.job}", f"TimeLimit={minutes}")
    soak.cluster("scontrol", "update", *limit)
    restarts = record["Restarts"]
    wait_until(
        lambda: (
            soak.cluster.show(soak.job)["Restarts"] != restarts
            or soak.cluster.state(soak.job) not in ("RUNNING", "COMPLETING")
        ),
        150,
        "the time limit",
    )
    soak.cluster("scontrol", "update", f"JobId={soak.job}", "TimeLimit=60", check=False)


def scancel(*options: str) -> Callable[[Soak], None]:
    def send(soak: Soak) -> None:
        soak.cluster("scancel", *options, soak.job, check=False)

    return send


def kill_rank(soak: Soak) -> None:
    pids = [pid for host in soak.cluster.hosts for pid in soak.ranks(host)]
    if pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(soak.random.choice(pids), signal.SIGKILL)
    else:  # there is none yet
        scancel("--signal=KILL")(soak)


def kill_slurmd(soak: Soak) -> None:
    host = soak.random.choice(soak.hosts())
    daemon = next(
        int(pid)
        for pid in run("ip", "netns", "pids", host).split()
        if psutil.Process(int(pid)).name() == "slurmd"
    )
    os.kill(daemon, signal.SIGKILL)
    restarted(soak, 60)
    soak.cluster._daemon(host, "slurmd", "-D", "-N", host, "-f", str(soak.cluster.conf))


def cut_network(soak: Soak) -> None:
    host = soak.random.choice(soak.hosts())
    run("ip", "-n", host, "link", "set", "eth0", "down")
    try:
        restarted(soak, 90)
        time.sleep(soak.random.uniform(0, 10))
    finally:
        run("ip", "-n", host, "link", "set", "eth0", "up")


def restarted(soak: Soak, seconds: float) -> None:
    """Wait until Slurm has given up the job's hosts."""
    restarts = soak.cluster.show(soak.job)["Restarts"]
    wait_until(
        lambda: (
            soak.cluster.show(soak.job)["Restarts"] != restarts
            or soak.cluster.state(soak.job) != "RUNNING"
        ),
        seconds,
        "the end of the job",
    )


def fill_disk(soak: Soak) -> None:
    filler, before = soak.folder / "disk" / "filler", soak.attempt()
    try:
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        deadline = time.monotonic() + 90
        while soak.cluster.state(soak.job) == "RUNNING" and time.monotonic() < deadline:
            if soak.attempt() > before:
                break
            time.sleep(0.2)
    finally:
        filler.unlink(missing_ok=True)


def wandb_down(soak: Soak) -> None:
    soak.stop_wandb()
    time.sleep(soak.random.uniform(1, 10))
    soak.start_wandb()


FAULTS: dict[str, Callable[[Soak], None]] = {
    "preemption by priority": preempt,
    "time limit": time_limit,
    "scancel": scancel(),
    "scancel --signal=TERM": scancel("--signal=TERM"),
    "scancel --signal=USR1": scancel("--signal=USR1"),
    "scancel --signal=USR2": scancel("--signal=USR2"),
    "scancel --signal=INT": scancel("--signal=INT"),
    "scancel --batch --signal=USR1": scancel("--batch", "--signal=USR1"),
    "scancel --signal=KILL": scancel("--signal=KILL"),
    "SIGKILL of one rank": kill_rank,
    "slurmd killed": kill_slurmd,
    "network cut": cut_network,
    "disk full": fill_disk,
    "wandb": wandb_down,
}
HARD = {"scancel --signal=KILL", "SIGKILL of one rank", "slurmd killed", "network cut", "disk full"}
GRACEFUL = FAULTS.keys() - HARD
SHARE = {"preemption by priority": 6, "SIGKILL of one rank": 8, "time limit": 3, "wandb": 5}


def schedule(count: int, chance: random.Random, kinds: list[str]) -> list[str]:
    """A shuffled list of faults in which every kind comes."""
    weights = [SHARE.get(kind, 2) for kind in kinds]
    more = chance.choices(kinds, weights, k=max(0, count - len(kinds)))
    chosen = [*kinds, *more]
    chance.shuffle(chosen)
    return chosen
