"""One training run under many faults on a real Slurm of three hosts, and what it cost.

    make soak        or        python tests/cluster/soak.py --faults 45 --seed 7 --out soak.json

A run of some hundred steps on two of three hosts, one rank each, is interrupted at random moments
of a printed seed: while it starts, while it trains, while it saves. Every fault waits until the run
has gone on. In the end the weights are compared with those of a run that nothing interrupted, and
rows and steps are counted from what was written down. Steps are slowed to a fifth of a second, or
they would be over before a fault arrives.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path += [str(TESTS), str(TESTS / "integration"), str(ROOT)]

from slurm_cluster import Cluster, a_cluster, run, wait_until  # noqa: E402 - after the path
from small import make_shards, make_teacher, quick  # noqa: E402
from wandb_server import KEY, WandbServer  # noqa: E402

from fitb.cluster.local import LocalRun, free_port, train_command  # noqa: E402
from fitb.fsio import read_json, read_lines, sha256_file  # noqa: E402
from fitb.train.trace import rows_of_steps  # noqa: E402

INTERVAL = 10  # steps between two checkpoints
DISK_MB = 96
PATIENCE_S = 300

# Each step of a training takes 0.2 s longer.
SLOW = """
import sys
if "train" in sys.orig_argv:
    import time
    from fitb.train.engine import Engine
    step = Engine.train_step
    def slow(self, *args):
        time.sleep(0.2)
        return step(self, *args)
    Engine.train_step = slow
"""


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
    """

    cluster: Cluster
    folder: Path
    flags: list[str]
    wandb_port: int
    random: random.Random
    job: str = ""
    faults: list[Fault] = field(default_factory=list)
    _wandb: subprocess.Popen[bytes] | None = None

    @property
    def run_dir(self) -> Path:
        return self.folder / "disk" / "run"

    # The run

    def submit(self) -> None:
        env = {
            "FITB_PYTHON": sys.executable,
            "PYTHONPATH": f"{self.folder / 'site'}:{ROOT}",
            "OMP_NUM_THREADS": "1",
            "WANDB_BASE_URL": f"http://{self.cluster.subnet}.254:{self.wandb_port}",
            "WANDB_API_KEY": KEY,
        }
        options = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
        options += ["--time=60", "--signal=B:USR1@55", f"--output={self.folder / 'batch.out'}"]
        script = str(ROOT / "slurm" / "distill.sh")
        flags = [*self.flags, "--run_dir", str(self.run_dir), "--track.wandb", "online"]
        self.job = self.cluster.sbatch(*options, script, *flags, env=env, cwd=ROOT)

    def keep_going(self) -> bool:
        """Hurry a job that waits, submit one that is over anew; say whether the run is finished."""
        state = self.cluster.state(self.job)
        if state == "PENDING":
            if "held" in self.cluster("squeue", "-h", "-j", self.job, "-o", "%r"):
                self.cluster("scontrol", "release", self.job, check=False)  # its launch failed
            self.cluster.hurry(self.job)
        elif state == "COMPLETED":
            return True
        elif state not in ("RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"):
            if self.faults:
                self.faults[-1].resubmitted = True
            self.submit()
        return False

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
        return list(self.events("attempt")[-1]["hosts"]) if self.attempt() else []

    def ranks(self, host: str) -> list[int]:
        """Processes of the training on a host."""
        found = []
        for pid in run("ip", "netns", "pids", host).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                words = psutil.Process(int(pid)).cmdline()
                if words[1:4] == ["-m", "fitb", "train"]:
                    found.append(int(pid))
        return found

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
        command = [sys.executable, str(TESTS / "integration" / "wandb_server.py"), *where]
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
        if self.random.random() < 0.25 and kind not in ("network", "slurmd"):
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
        fault.steps_lost = max(0, fault.at_step - fault.resumed_step)
        return fault

    def begin_of(self, attempt: int) -> int:
        """The step that an attempt began with."""
        return next((e["step"] for e in self.events("resume") if e["attempt"] == attempt), 0)


def preempt(soak: Soak) -> None:
    job = soak.cluster.preempt()
    wait_until(lambda: soak.cluster.state(job) == "COMPLETED", 120, "the job that preempts")


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


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder))
    try:
        yield
    finally:
        run("umount", "-l", str(folder))


def weights(run_dir: Path) -> dict[str, str]:
    """File -> hash of the newest checkpoint's tensors."""
    folder = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}


def count_rows(run_dir: Path, num_rows: int, steps: int) -> tuple[int, int]:
    """Return (rows lost, rows repeated) over the epochs of a run, from its trace.

    Of whole epochs every row must come once; of the last, which is not over, none twice.
    """
    rows = rows_of_steps(run_dir)
    lost = sum(step not in rows for step in range(1, steps + 1))
    in_order = [row for step in sorted(rows) for row in rows[step]]
    repeated = 0
    for begin in range(0, len(in_order), num_rows):
        epoch = Counter(in_order[begin : begin + num_rows])
        repeated += sum(count - 1 for count in epoch.values())
        if begin + num_rows <= len(in_order):
            lost += num_rows - len(epoch)
    return lost, repeated


def straight_weights(folder: Path, flags: list[str]) -> dict[str, str]:
    """Of a run of two ranks on this machine that nothing interrupts."""
    command = train_command([*flags, "--run_dir", str(folder), "--track.wandb", "disabled"])
    with LocalRun(command, 2, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}) as ranks:
        assert ranks.wait(900) == 0
    return weights(folder)


def soak(num_faults: int, seed: int, steps: int, kinds: list[str], folder: Path) -> dict[str, Any]:
    """Run it and return what soak.json holds."""
    shards = make_shards(folder)
    flags = quick(
        shards, make_teacher(folder, shards), steps=steps, checkpoint_every=INTERVAL, eval_every=0
    )
    flags += ["--track.rows=true", "--stop.hang_s", "120"]
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SLOW)
    straight = straight_weights(folder / "straight", flags)
    began = time.monotonic()
    with small_disk(folder / "disk"), a_cluster(num_hosts=3) as cluster:
        it = Soak(cluster, folder, flags, free_port(), random.Random(seed))
        it.start_wandb()
        try:
            it.submit()
            plan = schedule(num_faults, it.random, kinds)
            for number, kind in enumerate(plan, 1):
                fault = it.suffer(kind)
                print(f"{number}/{len(plan)} {json.dumps(asdict(fault))}", flush=True)
                if cluster.state(it.job) == "COMPLETED":
                    break
            it.await_going("the end", lambda: False)
            minutes = (time.monotonic() - began) / 60
            wandb_id = (it.run_dir / "wandb_id").read_text().strip()
            result = judge(it, straight, read_json(shards / "manifest.json"), steps)
        finally:
            it.stop_wandb()
            logs = [path.read_bytes() for path in it.run_dir.rglob("*") if path.is_file()]
    with WandbServer(journal=folder / "wandb.jsonl") as server:
        sent = server.runs[wandb_id].steps()
    result |= {
        "wandb_steps_missing": len(set(range(1, steps + 1)) - set(sent)),
        "wandb_steps_twice": len(sent) - len(set(sent)),
        "keys_in_files": sum(KEY.encode() in log for log in logs),
    }
    return {"seed": seed, "steps": steps, "interval": INTERVAL, "minutes": round(minutes), **result}


def judge(
    it: Soak, straight: dict[str, str], manifest: dict[str, Any], steps: int
) -> dict[str, Any]:
    rows = sum(s["rows"] for s in manifest["shards"] if s["split"] == "train")
    lost, repeated = count_rows(it.run_dir, rows, steps)
    logged = [record["train/step"] for record in read_lines(it.run_dir / "metrics.jsonl")]
    losses = {
        graceful: [fault.steps_lost for fault in it.faults if fault.graceful is graceful]
        for graceful in (True, False)
    }
    return {
        "faults": len(it.faults),
        "attempts": it.attempt(),
        "bitwise_equal": weights(it.run_dir) == straight,
        "epochs": round(steps * 16 / rows, 2),
        "rows_lost": lost,
        "rows_repeated": repeated,
        "steps_missing_in_metrics": len(set(range(1, steps + 1)) - set(logged)),
        "steps_twice_in_metrics": len(logged) - len(set(logged)),
        "steps_lost_graceful": max(losses[True], default=0),
        "steps_lost_hard_max": max(losses[False], default=0),
        "table": [asdict(fault) for fault in it.faults],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=45)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--kinds", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fitb-soak-") as folder:
        result = soak(options.faults, options.seed, options.steps, options.kinds, Path(folder))
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    shown = {key: value for key, value in result.items() if key != "table"}
    print(json.dumps(shown))
    nothing_lost = result["bitwise_equal"] and not any(
        result[key] for key in result if key.startswith(("rows_", "steps_missing", "steps_twice"))
    )
    kept = result["steps_lost_graceful"] == 0 and result["steps_lost_hard_max"] <= INTERVAL
    wandb = not (result["wandb_steps_missing"] or result["wandb_steps_twice"])
    return 0 if nothing_lost and kept and wandb and not result["keys_in_files"] else 1


if __name__ == "__main__":
    sys.exit(main())
