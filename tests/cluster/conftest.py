"""The cluster of the session, and the job that its tests run: a stand-in, then the real one."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from executable import executable
from machine import ClusterUnavailable
from slurm_cluster import Cluster, a_cluster, tail
from small import quick

from fitb.base.fsio import read_lines
from fitb.cluster.executor import resource_parser
from fitb.cluster.local import LocalRun, train_command
from fitb.cluster.submit import submit_distill
from fitb.rundir.checkpoints import last_committed_step

ROOT = Path(__file__).resolve().parents[2]
DISTILL = ROOT / "slurm" / "distill.sh"


@pytest.fixture(scope="session")
def slurm():
    """A Slurm of two hosts; where there can be none the tests are skipped, in CI they fail."""
    try:
        with a_cluster(num_hosts=2) as cluster:
            yield cluster
    except ClusterUnavailable as error:
        if os.environ.get("CI") or os.environ.get("FITB_REQUIRE_CLUSTER"):
            pytest.fail(f"no Slurm: {error}")
        pytest.skip(f"no Slurm: {error}")


@pytest.fixture
def cluster(slurm):
    """The session's cluster with an empty queue before and after."""
    yield slurm
    slurm.cancel_all()


@dataclass(frozen=True)
class Payload:
    """A job to run.

    Args:
        python: interpreter of the batch script.
        entry: what the submitit door calls.
        flags: of the job, but for --run_dir.
        env: of the job.
        steps: the last one.
    """

    python: str
    entry: str
    flags: list[str]
    env: dict[str, str]
    steps: int
    tasks_per_node: int = 1


@dataclass
class Run:
    """A run directory under test, and the two doors into it."""

    cluster: Cluster
    payload: Payload
    folder: Path

    @property
    def batch_log(self):
        return Path(f"{self.folder}.batch.out")

    @property
    def flags(self):
        return ["--run_dir", str(self.folder), *self.payload.flags]

    def env(self, **more):
        """What the job finds in its environment."""
        return self.payload.env | {"FITB_PYTHON": self.payload.python} | more

    def sbatch(self, *options, env=None, flags=(), script=DISTILL, cwd=ROOT):
        """Submit a script and return the job id."""
        return self.cluster.sbatch(
            "--nodes=2",
            f"--ntasks-per-node={self.payload.tasks_per_node}",
            "--gpus-per-node=0",
            "--cpus-per-task=1",
            f"--output={self.batch_log}",
            *options,
            script,
            *self.flags,
            *flags,
            env=self.env(**(env or {})),
            cwd=cwd,
        )

    def submitit(self, monkeypatch, *where, links=0, preflight=False, torchrun=False):
        """Submit through fitb.cluster.submit; return submitit's jobs, of a chain all of them."""
        for name, value in (self.payload.env | {"SLURM_CONF": str(self.cluster.conf)}).items():
            monkeypatch.setenv(name, value)
        tasks = str(self.payload.tasks_per_node)
        options = ["--cluster", "slurm", "--nodes", "2", "--tasks_per_node", tasks, *where]
        arguments = resource_parser("test").parse_args(options)
        arguments.chain, arguments.preflight, arguments.torchrun = links, preflight, torchrun
        return submit_distill(self.flags, arguments, entry=self.payload.entry)[0]

    def events(self, name):
        lines = read_lines(self.folder / "events.jsonl")
        return [event for event in lines if event["event"] == name]

    def saved(self):
        """The last committed step."""
        return last_committed_step(self.folder)

    def logs(self):
        """The ends of all logs of the run, for a message."""
        files = (self.batch_log, *sorted(self.folder.glob("logs/*")))
        return tail([path for path in files if path.is_file() and path.suffix in (".out", ".err")])


def stand_in(folder, steps=60):
    """The stand-in behind an interpreter that runs it in place of `-m fitb train`."""
    python = executable(
        folder / "python",
        'if [[ "$1 $2 $3" == "-m fitb train" ]]; then shift 3; set -- -m stand_in "$@"; fi\n'
        f'exec {sys.executable} "$@"',
    )
    env = {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    flags = ["--steps", str(steps), "--checkpoint.every_steps", "10"]
    return Payload(str(python), "stand_in:train", flags, env, steps, tasks_per_node=2)


@pytest.fixture
def run(cluster, tmp_path):
    """A run of the stand-in, not yet submitted."""
    return Run(cluster, stand_in(tmp_path), tmp_path / "run")


@pytest.fixture(scope="session")
def real(shards, teacher):
    """The real training of 80 steps, without validation, which is not what is tested here."""
    flags = quick(shards, teacher, steps=80, eval_every=0)
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return Payload(sys.executable, "fitb.training.loop:train", flags, env, steps=80)


@pytest.fixture(scope="session")
def straight(real, make_once):
    """A run of two ranks on this machine that nothing interrupted."""

    def train(folder):
        command = train_command([*real.flags, "--run_dir", str(folder / "run")])
        with LocalRun(command, 2, env=real.env) as ranks:
            assert ranks.wait(300) == 0

    return make_once("straight", train) / "run"


@pytest.fixture
def real_run(cluster, real, tmp_path):
    """A run of the real training, not yet submitted."""
    return Run(cluster, real, tmp_path / "run")
