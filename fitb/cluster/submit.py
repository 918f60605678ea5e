"""The submitit door: the callable that every task runs, and the executor that submits it.

submitit installs a handler of SIGUSR2 that pickles the callable anew and requeues the job, from
rank 0, at once. Training replaces the handlers and saves first, at the end of a step, on all ranks;
after that rank 0 calls the handler that it put aside. Of a preemption submitit itself only logs
the SIGTERM, so that is ours to catch, too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import logging
import math
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import submitit
from submitit.core.utils import FailedJobError, JobPaths, UncompletedJobError

from fitb import log
from fitb.cluster import progress, slurm
from fitb.config import Config
from fitb.config_io import to_yaml
from fitb.errors import CRASH, FINISHED, RESUME, STOP, ConfigError, FitbError, SystemFault
from fitb.flags import parse
from fitb.front import FrontParser
from fitb.fsio import read_json, read_lines, write_atomic
from fitb.world import World

logger = logging.getLogger(__name__)

# submitit counts every leave at a short time limit as a time-out; the end is ours to decide.
MAX_NUM_TIMEOUT = 1_000_000
STATE_POLL_S = 10.0


class JobStopped(FitbError):
    """A job that is not requeued; raised so that the scheduler shows it as failed."""

    exit_code = STOP


@dataclass(frozen=True)
class DistillJob:
    """What every task of a submitit job runs; pickled, so it holds nothing but words.

    Args:
        flags: of `fitb train`.
        entry: module:function that takes a Config, and what to call before it is ended from
            within, and returns an exit code.
        restarts: how often submitit has requeued this job.
        chain: that this job is a link of; a link is never requeued.
    """

    flags: tuple[str, ...]
    entry: str = "fitb.train.loop:train"
    restarts: int = 0
    chain: str = ""

    def __call__(self) -> int:
        """Train, and requeue the job where that helps.

        Returns: FINISHED.
        Raises: JobStopped on rank 0 where starting again would not help; SystemExit on the others.
        """
        job = submitit.JobEnvironment()
        world = World(job.global_rank, job.num_tasks, job.local_rank)
        log.setup(world.rank)
        requeue = signal.getsignal(getattr(signal, f"SIG{job.USR_SIG}"))
        config = parse(Config, "fitb train", self.flags)
        run_dir, source = Path(config.run_dir), self._source(job)
        over = progress.already_over(run_dir, source=source, steps=config.steps)
        if over:
            return _end(over, world, run_dir)
        seen = 0
        if world.is_main:
            progress.begin_afresh(run_dir)
            seen = progress.num_attempts(run_dir)

        def follow_up(code: int) -> int:
            decision = progress.decide(run_dir, code, source=source, seen=seen)
            if decision.exit_code != RESUME:
                return _end(decision, world, run_dir)
            logger.info("%s", decision.reason)
            return self._again(job, code, requeue)

        code = self._train(job, world, config, follow_up if world.is_main else None)
        if not world.is_main:
            return FINISHED if code == FINISHED else sys.exit(code)
        return follow_up(code)

    def _again(self, job: Any, code: int, requeue: Any) -> NoReturn:
        """Let the job be started again, by a requeue or by the next link of its chain."""
        if self.chain:
            logger.info("the next link of chain %s goes on", self.chain)
            sys.exit(code)
        if job.cluster == "slurm" and (state := _state(job.job_id)) != "RUNNING":
            logger.info("no requeue from here: Slurm reports %s for this job", state)
            sys.exit(code)
        _forget_broken_pickle(job.paths)
        requeue(signal.SIGUSR2, None)
        raise AssertionError("submitit's handler ends the process")

    def _source(self, job: Any) -> progress.Source:
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", self.restarts))
        return progress.Source(job.job_id, restarts, self.chain)

    def checkpoint(self) -> Any:
        """submitit's hook: what the requeued job runs."""
        return submitit.helpers.DelayedSubmission(
            dataclasses.replace(self, restarts=self.restarts + 1)
        )

    def _train(
        self, job: Any, world: World, config: Config, on_end: Callable[[int], Any] | None
    ) -> int:
        """Run the entry in the environment that it expects; an exception becomes an exit code."""
        local = job.cluster == "local"
        port = slurm.master_port(int(job.job_id.split("_")[0]), self._source(job).restart)
        os.environ.update(world.env("127.0.0.1" if local else job.hostnames[0], port))
        if local:  # as the setup lines of a Slurm job do
            threads = max(1, (os.cpu_count() or 1) // world.size)
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        told_to_leave: list[int] = []

        def note(number: int, frame: FrameType | None) -> None:
            told_to_leave.append(number)

        signal.signal(signal.SIGTERM, note)
        if self.chain:  # submitit's own handler would requeue
            signal.signal(signal.SIGUSR2, note)
        try:
            module, _, name = self.entry.partition(":")
            train = getattr(importlib.import_module(module), name)  # seconds of imports
            # Rank 0 alone leaves before the start: its requeue ends the others.
            return RESUME if told_to_leave and world.is_main else int(train(config, on_end))
        except FitbError as error:
            logger.exception("training failed")
            return CRASH if error.restart_helps else STOP
        except Exception:
            logger.exception("training crashed")
            return CRASH


def _end(decision: progress.Decision, world: World, run_dir: Path) -> int:
    """End a task of a run that is over: return FINISHED, or fail visibly, on rank 0."""
    logger.info("%s", decision.reason)
    if decision.exit_code == FINISHED:
        return FINISHED
    if not world.is_main:
        sys.exit(decision.exit_code)
    raise JobStopped(f"{decision.reason}; see {run_dir / 'events.jsonl'}")


def _state(job_id: str) -> str:
    """Slurm's word for the job's state; RUNNING where Slurm does not answer for half a minute."""
    for _ in range(6):
        try:
            return slurm.job_state(job_id)
        except SystemFault as error:
            logger.warning("%s; asking again", error)
            time.sleep(5)
    return "RUNNING"


def _forget_broken_pickle(paths: JobPaths) -> None:
    """Remove what a kill in the middle of submitit's dump left; its next dump refuses to go on."""
    pickle = Path(paths.submitted_pickle)
    pickle.with_suffix(pickle.suffix + ".save_tmp").unlink(missing_ok=True)


def resource_parser(prog: str, **defaults: Any) -> FrontParser:
    """Build the parser of the flags that say where a job runs; other flags are left to others."""
    parser = FrontParser(prog)
    add = parser.add_argument
    add("--cluster", choices=("auto", "slurm", "local"), default="auto", help="where; auto looks")
    add("--nodes", type=int, default=1, help="hosts")
    add("--tasks_per_node", type=int, default=1, help="processes on each host, one per GPU")
    add("--cpus_per_task", type=int, help="CPU cores of each process")
    add("--gpus_per_node", type=int, help="GPUs of each host")
    add("--time_min", type=float, default=240, help="time limit of one attempt, in minutes")
    add("--signal_delay_s", type=int, default=300, help="warning before the time limit, in seconds")
    add("--partition", help="Slurm partition")
    add("--job_name", default="fitb", help="Slurm's name of the job")
    add("--wait", action="store_true", help="wait for the end and return the job's exit code")
    parser.set_defaults(chain=0, preflight=False, **defaults)  # flags of launch.distill alone
    return parser


def make_executor(
    where: argparse.Namespace, folder: Path, *, setup: Sequence[str] = (), chain: str = ""
) -> submitit.Executor:
    """Make the executor for a job whose logs go to `folder`.

    Args:
        setup: lines of the batch script before the tasks.
        chain: that the job is a link of, and its name: links run one after another.
    Raises: SystemFault where the cluster is not there or cannot hold such a job.
    """
    on_slurm = where.cluster == "slurm" or (where.cluster == "auto" and shutil.which("srun"))
    try:
        if on_slurm:
            return _slurm_executor(where, folder, setup, chain)
        if setup or chain:
            raise ValueError("--chain and --preflight are of Slurm; leave them out here")
        return _local_executor(where, folder)
    except (RuntimeError, ValueError) as error:
        raise SystemFault(f"--cluster {where.cluster}: {error}") from error


def _slurm_executor(
    where: argparse.Namespace, folder: Path, setup: Sequence[str], chain: str
) -> submitit.SlurmExecutor:
    executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_NUM_TIMEOUT)
    link = {"no-requeue": True, "dependency": "singleton"}
    executor.update_parameters(
        job_name=chain or where.job_name,
        nodes=where.nodes,
        ntasks_per_node=where.tasks_per_node,
        cpus_per_task=where.cpus_per_task,
        gpus_per_node=where.gpus_per_node,
        time=math.ceil(where.time_min),
        partition=where.partition,
        signal_delay_s=where.signal_delay_s,
        additional_parameters=link if chain else {"requeue": True},
        # slurm/distill.sh says why a bad exit does not kill.
        srun_args=["--kill-on-bad-exit=0", "--wait=60", "--open-mode=append"],
        setup=[
            "unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT",
            "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
            'if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then'
            " export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi",
            *setup,
        ],
    )
    return executor


def _local_executor(where: argparse.Namespace, folder: Path) -> submitit.LocalExecutor:
    executor = submitit.LocalExecutor(folder, max_num_timeout=MAX_NUM_TIMEOUT)
    executor.update_parameters(
        nodes=where.nodes,
        tasks_per_node=where.tasks_per_node,
        gpus_per_node=where.gpus_per_node or 0,
        timeout_min=where.time_min,
        signal_delay_s=where.signal_delay_s,
    )
    return executor


def submit_distill(
    flags: Sequence[str], where: argparse.Namespace, *, entry: str = DistillJob.entry
) -> tuple[list[submitit.Job[int]], Path]:
    """Check the configuration, write it down and submit; return the jobs and the run directory.

    There is one job, or as many as the chain has links, in their order.

    Raises: ConfigError, before anything is submitted; SystemFault where the scheduler refuses.
    """
    if where.chain < 0:
        raise ConfigError(f"--chain {where.chain}: expected the number of jobs, or 0 for no chain")
    run_dir = slurm.default_run_dir(where.job_name)
    config = parse(Config, "python -m launch.distill", ["--run_dir", run_dir, *flags])
    config.grad_accum(where.nodes * where.tasks_per_node)
    logs = Path(config.run_dir).absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    text = to_yaml(config)
    # Named by its content: a job that waits in the queue keeps the configuration it was given.
    path = logs / f"launch-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
    write_atomic(path, text)
    chain = f"{where.job_name}-{secrets.token_hex(4)}" if where.chain else ""
    setup = [f"export FITB_CHAIN={shlex.quote(chain)}"] if chain else []
    if where.preflight:
        words = [sys.executable, "-m", "fitb.cluster.preflight", "--config", str(path)]
        setup.append(f"{shlex.join(words)} || exit $?")
    executor = make_executor(where, logs, setup=setup, chain=chain)
    task = DistillJob(("--config", str(path)), entry, chain=chain)
    jobs = [_submit(executor, task) for _ in range(where.chain or 1)]
    return jobs, Path(config.run_dir)


def _submit(executor: submitit.Executor, task: Any) -> submitit.Job[int]:
    try:
        return executor.submit(task)
    except (FailedJobError, subprocess.CalledProcessError, OSError) as error:
        raise SystemFault(f"the job was not accepted: {error}") from error


def wait_for(job: submitit.Job[int], run_dir: Path | None = None) -> int:
    """Wait for the end of a job through all its requeues; return its exit code.

    Args:
        job: as submitted; of a chain the last one.
        run_dir: of a training job, where the reason of its end is read.
    """
    first = job.task(0) if job.num_tasks > 1 else job
    asked = time.monotonic()
    while not first.done():
        time.sleep(0.5)
        if isinstance(job, submitit.SlurmJob) and time.monotonic() - asked > STATE_POLL_S:
            asked = time.monotonic()
            try:
                if slurm.job_state(job.job_id) in slurm.ENDED:
                    break  # killed before it could leave a result
            except SystemFault as error:
                logger.warning("%s; asking again", error)
    if first.paths.result_pickle.exists():
        with contextlib.suppress(FailedJobError, UncompletedJobError):
            return int(first.result())
    return _end_of(job.job_id, run_dir) if run_dir else CRASH


def _end_of(job_id: str, run_dir: Path) -> int:
    """Return what the run says of a job that left no result."""
    decided = [
        event
        for event in read_lines(run_dir / "events.jsonl")
        if event["event"] in ("requeue", "stop") and event.get("job") == job_id
    ]
    if decided and decided[-1]["event"] == "stop":
        return STOP
    if decided:
        return RESUME if decided[-1].get("chain") else CRASH
    done = run_dir / "done.json"  # a link that came after the end
    return int(read_json(done)["exit_code"]) if done.exists() else CRASH
