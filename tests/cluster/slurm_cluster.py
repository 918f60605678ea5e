"""A real Slurm of several hosts on one machine: each host is a network and a UTS namespace.

One controller host and N compute hosts hang on one bridge; a second link of each compute host, on a
bridge of its own, is the fast network that no daemon uses. A slot (names, subnet, folder) belongs
to the session that holds its lock, so a leftover of a killed session is cleared by the next one
that takes the slot, and sessions that run at the same time do not meet. As a program (`make slurm`)
it is a cluster to try things on.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
from machine import ClusterUnavailable, open_lock, run, start_munge, wait_until, why_not

SLOTS = 8
PROCTRACK = os.environ.get("FITB_PROCTRACK", "linuxproc")  # or cgroup, where cgroup v1 is there
HOSTS_OF = Path("/etc/netns")  # `ip netns exec` mounts the files found there over those in /etc

CONF = """\
ClusterName=fitb
SlurmctldHost={controller}({subnet}.1)
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
SlurmdTimeout=10
GresTypes=gpu
NodeName={hosts} NodeAddr={addresses} CPUs=64 RealMemory=4000 Gres=gpu:8
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s}
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """A running Slurm, and what a test does to it.

    Args:
        slot: number of the slot, part of every name and of the subnet.
        num_hosts: compute hosts.
        grace_s: seconds between the signal of a preemption and its end.
    """

    FABRIC = "eth1"  # name of a compute host's second link

    def __init__(self, slot: int, num_hosts: int = 2, grace_s: int = 25) -> None:
        self.slot = slot
        self.prefix = f"fitb{slot}"
        self.subnet = f"10.77.{slot}"
        self.folder = Path(f"/tmp/fitb-cluster-{slot}")
        self.controller = f"{self.prefix}c"
        self.hosts = [f"{self.prefix}h{i}" for i in range(1, num_hosts + 1)]
        self.grace_s = grace_s
        self.conf = self.folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.env["SLURM_CONF"] = str(self.conf)

    # Up and down

    def up(self) -> None:
        """Start from nothing, whatever an earlier owner of this slot left."""
        self.down()
        self.folder.mkdir()  # what is left there now is no cluster's
        self._write_conf()
        (self.folder / "state").mkdir()
        start_munge()
        run("ip", "link", "add", self.prefix, "type", "bridge")
        run("ip", "addr", "add", f"{self.subnet}.254/24", "dev", self.prefix)
        run("ip", "link", "set", self.prefix, "up")
        run("ip", "link", "add", f"{self.prefix}f", "type", "bridge")
        run("ip", "link", "set", f"{self.prefix}f", "up")
        self._add_host(self.controller, 1)
        self._daemon(self.controller, "slurmctld", "-D", "-i", "-c", "-f", str(self.conf))
        for number, host in enumerate(self.hosts, start=11):
            self._add_host(host, number)
            self._add_link(host, number, self.FABRIC, f"{self.prefix}f", f"10.78.{self.slot}")
            (self.folder / f"spool-{host}").mkdir()
            self._daemon(host, "slurmd", "-D", "-N", host, "-f", str(self.conf))
        idle = str(len(self.hosts))
        try:
            wait_until(
                lambda: self("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "low") == idle,
                60,
                "all hosts idle",
            )
        except TimeoutError as error:
            raise ClusterUnavailable(f"{error}\n{self.daemon_logs()}") from None

    def down(self) -> None:
        """End every process in this slot's namespaces, then remove namespaces, links and files."""
        present = run("ip", "netns", "list").split()
        for name in [word for word in present if word.startswith(self.prefix)]:
            for _ in range(50):  # a step may start one more process while its others end
                pids = run("ip", "netns", "pids", name).split()
                if not pids:
                    break
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.05)
            run("ip", "netns", "del", name)
            shutil.rmtree(HOSTS_OF / name, ignore_errors=True)
        while self._daemons:
            self._daemons.pop().wait()
        # A namespace dies some time after its last process, and its end of a link with it.
        for line in run("ip", "-o", "link", "show").splitlines():
            link = line.split(":")[1].strip().split("@")[0]
            if link.startswith(self.prefix):
                run("ip", "link", "del", link, check=False)
        if self.conf.is_file() and not self.folder.is_symlink():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write_conf(self) -> None:
        hosts = f"{self.prefix}h[1-{len(self.hosts)}]"
        self.conf.write_text(
            CONF.format(
                controller=self.controller,
                subnet=self.subnet,
                folder=self.folder,
                hosts=hosts,
                addresses=f"{self.subnet}.[11-{10 + len(self.hosts)}]",
                grace_s=self.grace_s,
                proctrack=PROCTRACK,
            )
        )
        # Without a plugin named here slurmd fails where cgroup v2 is not mounted. A host sees no
        # /sys/fs/cgroup of the machine; what is mounted here ends with its mount namespace.
        cgroup = f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.folder}/cgroup\n"
        cgroup += f"CgroupAutomount={'yes' if PROCTRACK == 'cgroup' else 'no'}\n"
        (self.folder / "cgroup").mkdir()
        (self.folder / "cgroup.conf").write_text(cgroup)
        for number in range(8):  # a GPU is a file to Slurm, and any file will do
            (self.folder / f"gpu{number}").touch()
        gpus = f"NodeName={hosts} Name=gpu File={self.folder}/gpu[0-7]\n"
        (self.folder / "gres.conf").write_text(gpus)

    def _add_host(self, name: str, number: int) -> None:
        names = {self.controller: 1} | {host: 11 + i for i, host in enumerate(self.hosts)}
        lines = [f"{self.subnet}.{n} {host}\n" for host, n in names.items()]
        (HOSTS_OF / name).mkdir(parents=True, exist_ok=True)
        (HOSTS_OF / name / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        run("ip", "netns", "add", name)
        self._add_link(name, number, "eth0", self.prefix, self.subnet)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def _add_link(self, host: str, number: int, name: str, bridge: str, subnet: str) -> None:
        link = f"{bridge}v{number}"
        run("ip", "link", "add", link, "type", "veth", "peer", "name", name, "netns", host)
        run("ip", "link", "set", link, "master", bridge, "up")
        run("ip", "-n", host, "addr", "add", f"{subnet}.{number}/24", "dev", name)
        run("ip", "-n", host, "link", "set", name, "up")

    def on(self, host: str, *command: str) -> str:
        """Run a command with the files and the network that the jobs of a host see."""
        pid = str(self._daemons[1 + self.hosts.index(host)].pid)
        return run("nsenter", "--target", pid, "--mount", "--root", "--net", *command)

    def processes(self, host: str, *words: str) -> list[int]:
        """Process ids of a host whose interpreter was started with these words."""
        found = []
        for pid in run("ip", "netns", "pids", host).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                if tuple(psutil.Process(int(pid)).cmdline()[1 : 1 + len(words)]) == words:
                    found.append(int(pid))
        return found

    def _daemon(self, host: str, *command: str) -> None:
        script = 'hostname "$0" && exec "$@"'
        start = ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", script, host]
        with open(self.folder / f"{host}.err", "wb") as output:
            daemon = subprocess.Popen(
                [*start, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.env,
                start_new_session=True,
            )
        self._daemons.append(daemon)

    def daemon_logs(self, num_lines: int = 20) -> str:
        """The ends of all daemons' logs, for a message."""
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.err")])
        return tail(files, num_lines)

    # What a user does

    def __call__(self, *command: str, check: bool = True) -> str:
        """Run a Slurm command against this cluster and return what it printed."""
        return run(*command, check=check, env=self.env).strip()

    def sbatch(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> str:
        """Submit and return the job id."""
        words = ("sbatch", "--parsable", *map(str, arguments))
        return run(*words, env=self.env | dict(env or {}), cwd=cwd).strip().split(";")[0]

    def squeue(self) -> str:
        return self("squeue", "-a")

    def show(self, job: str) -> dict[str, str]:
        """Fields of `scontrol show job`."""
        text = self("scontrol", "show", "job", "-o", job)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def state(self, job: str) -> str:
        return self.show(job)["JobState"]

    def run_time_s(self, job: str) -> int:
        """Seconds that the job has run since its last start; below a day."""
        hours, minutes, seconds = map(int, self.show(job)["RunTime"].split(":"))
        return 3600 * hours + 60 * minutes + seconds

    def wait_state(self, job: str, *states: str, timeout_s: float = 120) -> str:
        """Wait until the job is in one of `states`, and return it."""
        self._wait(job, lambda: self.state(job) in states, timeout_s, "/".join(states))
        return self.state(job)

    def wait_restart(self, job: str, count: int = 1, timeout_s: float = 120) -> None:
        """Wait until a job has been requeued `count` times."""
        self._wait(job, lambda: int(self.show(job)["Restarts"]) >= count, timeout_s, "a requeue")

    def _wait(self, job: str, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Raises: TimeoutError with the job's record."""
        try:
            wait_until(condition, timeout_s, f"job {job}: {what}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.show(job)}\n{self.squeue()}") from None

    def wait_end(self, job: str, timeout_s: float = 180) -> str:
        """Wait until the job is over, hurrying it whenever it was requeued."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        deadline = time.monotonic() + timeout_s
        while (state := self.state(job)) not in over:
            if state == "PENDING":
                self.hurry(job)
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} not over in {timeout_s} s\n{self.show(job)}")
            time.sleep(0.3)
        return state

    def hurry(self, job: str) -> None:
        """Shorten the two minutes that Slurm makes a requeued job wait.

        Not to nothing: within the second of the requeue a host takes the new start for the old one
        and fails the job ("Job credential revoked").
        """
        record = self.show(job)
        if record["Reason"] == "BeginTime" and record["StartTime"] != "Unknown":
            start = datetime.datetime.fromisoformat(record["StartTime"])
            if start - datetime.datetime.now() > datetime.timedelta(seconds=5):
                update = (f"JobId={job}", "StartTime=now+2seconds")
                self("scontrol", "update", *update, check=False)

    def preempt(self, seconds: int = 1) -> str:
        """Submit a job of high priority that wants all hosts alone; return its id."""
        return self.sbatch(
            "--partition=high", f"--nodes={len(self.hosts)}", "--exclusive", "--output=/dev/null",
            f"--wrap=sleep {seconds}", cwd=self.folder,
        )  # fmt: skip

    def cancel_all(self) -> None:
        """Leave an empty queue behind."""
        jobs = self("squeue", "-h", "-o", "%i").split()
        if jobs:
            self("scancel", "--full", "--signal=KILL", *jobs, check=False)
            self("scancel", *jobs, check=False)
        wait_until(lambda: not self("squeue", "-h"), 60, "an empty queue")


@contextlib.contextmanager
def a_cluster(num_hosts: int = 2) -> Iterator[Cluster]:
    """Bring up a cluster in the first free slot and take it down at the end.

    Raises: ClusterUnavailable
    """
    reason = why_not()
    if reason:
        raise ClusterUnavailable(reason)
    for slot in range(SLOTS):
        with open_lock(Path(f"/tmp/fitb-cluster-{slot}.lock")) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            cluster = Cluster(slot, num_hosts)
            try:
                cluster.up()
                yield cluster
            finally:
                cluster.down()
            return
    raise ClusterUnavailable(f"all {SLOTS} slots are taken")


def tail(paths: Sequence[Path], num_lines: int = 30) -> str:
    """The ends of several files, for a message."""
    return "\n".join(
        f"--- {path}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-num_lines:])
        for path in paths
    )


def main() -> None:
    """Run a cluster of two hosts until Ctrl-C or SIGTERM, and say how a shell gets to it."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job is started deaf to the first
        signal.signal(number, signal.default_int_handler)
    try:
        with a_cluster() as cluster:
            print(f"export SLURM_CONF={cluster.conf}    # in another shell; Ctrl-C here ends it")
            sys.stdout.flush()
            signal.pause()
    except KeyboardInterrupt:
        print("down")


if __name__ == "__main__":
    main()
