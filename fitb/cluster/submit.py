"""Submitting a distillation through submitit: the callable that each task runs, and submission.

submitit's own SIGUSR2 handler pickles the callable and requeues the job at once, on rank 0. So
training replaces the handler, checkpoints on all ranks at the end of a step, and then rank 0 calls
submitit's handler. On preemption submitit only logs the SIGTERM, so that is handled here as well.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import logging
import os
import secrets
import shlex
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
from submitit.core.utils import FailedJobError, UncompletedJobError

from fitb.base import log, signals
from fitb.base.errors import CRASH, FINISHED, RESUME, STOP, ConfigError, FitbError, SystemFault
from fitb.base.fsio import write_atomic
from fitb.base.job_states import ENDED
from fitb.base.world import World, address_of, starts_of
from fitb.cluster import slurm
from fitb.cluster.arrays import JobStopped, submit_tasks
from fitb.cluster.executor import make_executor, script_of
from fitb.config import Config
from fitb.config.ds_config import read_ds_config
from fitb.config.parser import parse
from fitb.config.yaml import to_yaml
from fitb.rundir import names, restart
from fitb.rundir.events import num_attempts, read_events

logger = logging.getLogger(__name__)
STATE_POLL_S = 10.0


@dataclass(frozen=True)
class DistillJob:
    """The callable of every task of a submitit job; pickled, so it has only plain fields.

    Args:
        flags: flags of `fitb train`.
        entry: module:function called with the Config and the `on_end` callback; returns an exit
            code.
        restarts: how often submitit has requeued this job.
        chain: name of the job's chain, whose jobs are never requeued; empty for none.
        processes: number of processes that torchrun starts per task; 0 trains without torchrun.
    """

    flags: tuple[str, ...]
    entry: str = "fitb.training.loop:train"
    restarts: int = 0
    chain: str = ""
    processes: int = 0

    def __call__(self) -> int:
        """Train, and requeue the job if that helps; after a crash the batch script decides.

        Returns: FINISHED.
        Raises: JobStopped on rank 0 if starting again would not help; SystemExit on other ranks.
        """
        job = submitit.JobEnvironment()
        world = World(job.global_rank, job.num_tasks, job.local_rank)
        log.setup(world.rank)
        requeue = signal.getsignal(getattr(signal, f"SIG{job.USR_SIG}"))
        config = parse(Config, "fitb train", self.flags)
        run_dir, source = Path(config.run_dir), self._source(job)
        over = restart.already_over(run_dir, source=source, steps=config.steps)
        if over:
            return _end(over, world, run_dir)
        seen = 0
        if world.is_main:
            restart.begin_afresh(run_dir)
            seen = num_attempts(run_dir)

        def follow_up(code: int) -> int:
            crashed = code not in (FINISHED, RESUME, STOP)
            if crashed and job.cluster == "slurm" and "FITB_START" in os.environ:
                sys.exit(code)  # the script decides; those of earlier versions do not
            decision = restart.decide(run_dir, code, source=source, seen=seen)
            if decision.exit_code != RESUME:
                return _end(decision, world, run_dir)
            logger.info("%s", decision.reason)
            return self._requeue(job, code, requeue)

        code = self._train(job, world, config, follow_up if world.is_main else None)
        if not world.is_main:
            return FINISHED if code == FINISHED else sys.exit(code)
        return follow_up(code)

    def _requeue(self, job: Any, code: int, requeue: Any) -> NoReturn:
        """Requeue the job, or exit so that the next link of its chain or the script continues."""
        if self.chain:
            logger.info("the next link of chain %s goes on", self.chain)
            sys.exit(code)
        if os.environ.get("FITB_APPTAINER") and not slurm.is_here():
            logger.info("no Slurm commands in this container: the batch script requeues")
            sys.exit(code)
        if job.cluster == "slurm" and (state := _state(job.job_id)) != "RUNNING":
            logger.info("no requeue from here: Slurm reports %s for this job", state)
            sys.exit(code)
        # A kill during submitit's previous dump leaves this file, and its next dump would fail.
        pickle = Path(job.paths.submitted_pickle)
        pickle.with_suffix(pickle.suffix + ".save_tmp").unlink(missing_ok=True)
        requeue(signals.TIME_LIMIT_OF_SUBMITIT, None)
        raise AssertionError("submitit's handler ends the process")

    def _source(self, job: Any) -> restart.Source:
        restarts, start = starts_of({"SLURM_RESTART_COUNT": str(self.restarts), **os.environ})
        hosts = os.environ.get("SLURM_JOB_NODELIST", "")
        return restart.Source(job.job_id, restarts, self.chain, hosts, start)

    def checkpoint(self) -> Any:
        """Return the callable of the requeued job; submitit's hook."""
        return submitit.helpers.DelayedSubmission(
            dataclasses.replace(self, restarts=self.restarts + 1)
        )

    def _train(
        self, job: Any, world: World, config: Config, on_end: Callable[[int], Any] | None
    ) -> int:
        """Run the entry point with its environment; return its exit code, or that of its error."""
        local = job.cluster == "local"
        number = int(os.environ.get("SLURM_JOB_ID", job.job_id))
        source = self._source(job)
        port = slurm.master_port(number, source.restart, source.start)
        address = "127.0.0.1" if local else address_of(job.hostnames[0], os.environ)
        if self.processes:
            return self._under_torchrun(world, {"MASTER_ADDR": address, "MASTER_PORT": str(port)})
        os.environ.update(world.env(address, port))
        if local:  # a Slurm job does this in its setup lines
            threads = max(1, (os.cpu_count() or 1) // world.size)
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        received: list[int] = []

        def on_signal(number: int, frame: FrameType | None) -> None:
            received.append(number)

        signal.signal(signals.PREEMPTION, on_signal)
        if self.chain:  # submitit's own handler would requeue
            signal.signal(signals.TIME_LIMIT_OF_SUBMITIT, on_signal)
        try:
            # Jobs submitted with an earlier version have pickled the old name of the package.
            entry = self.entry.replace("fitb.train.", "fitb.training.")
            module, _, name = entry.partition(":")
            train = getattr(importlib.import_module(module), name)  # seconds of imports
            # Only rank 0 exits before the start: its requeue terminates the others.
            return RESUME if received and world.is_main else int(train(config, on_end))
        except FitbError as error:
            logger.exception("training failed")
            return CRASH if error.restart_helps else STOP
        except Exception:
            logger.exception("training crashed")
            return CRASH

    def _under_torchrun(self, world: World, where: dict[str, str]) -> int:
        """Train in processes of a torchrun agent, one agent per task; return their exit code."""
        where |= {"SLURM_NNODES": str(world.size), "SLURM_NODEID": str(world.rank)}
        where["FITB_PROCESSES_PER_NODE"] = str(self.processes)
        command = [sys.executable, "-m", "fitb.training.torchrun", *self.flags]
        agent = subprocess.Popen(command, env=os.environ | where, stdin=subprocess.DEVNULL)

        def forward(number: int, frame: FrameType | None) -> None:
            agent.send_signal(number)

        for number in signals.BY_SCHEDULER:  # submitit's own handler would requeue
            signal.signal(number, forward)
        code = agent.wait()
        return code if code >= 0 else 128 - code


def _end(decision: restart.Decision, world: World, run_dir: Path) -> int:
    """End a task of a run that is over: return FINISHED, or fail; on rank 0 with the reason."""
    logger.info("%s", decision.reason)
    if decision.exit_code == FINISHED:
        return FINISHED
    if not world.is_main:
        sys.exit(decision.exit_code)
    raise JobStopped(f"{decision.reason}; see {run_dir / names.EVENTS}")


def _state(job_id: str) -> str:
    """Return Slurm's state of the job; RUNNING if Slurm does not answer for half a minute."""
    for _ in range(6):
        try:
            return slurm.job_state(job_id)
        except SystemFault as error:
            logger.warning("%s; retrying", error)
            time.sleep(5)
    return "RUNNING"


@dataclass(frozen=True)
class Submission:
    """A checked distillation, ready to be submitted; nothing is written yet.

    Args:
        config: configuration of the run.
        path: file that the job will read the configuration from.
        executor: executor of the job.
        task: callable of the job.
        num_jobs: number of jobs in the chain, or 1.
    """

    config: Config
    path: Path
    executor: submitit.Executor
    task: DistillJob
    num_jobs: int

    def render(self) -> str:
        """Return the batch script and the configuration as YAML, for a dry run."""
        times = f"# -- submitted {self.num_jobs} times\n" if self.num_jobs > 1 else ""
        script = script_of(self.executor).rstrip()
        return f"{script}\n\n{times}# -- {self.path}\n{to_yaml(self.config)}"


def plan_distill(
    flags: Sequence[str], where: argparse.Namespace, *, entry: str = DistillJob.entry
) -> Submission:
    """Check a configuration and prepare its job, without writing anything.

    Args:
        flags: flags of `fitb train`.
        where: flags of the submission.
        entry: entry point, as of DistillJob.
    Raises: ConfigError; SystemFault if the cluster is missing.
    """
    if where.chain < 0:
        raise ConfigError(f"--chain {where.chain}: expected a number of jobs, or 0 for no chain")
    run_dir = slurm.default_run_dir(where.job_name)
    words = ["--run_dir", run_dir, *flags]
    config = parse(Config, where.launcher.prog, words, launcher=where.launcher)
    read_ds_config(config.ds_config)
    config.grad_accum(where.nodes * where.tasks_per_node)
    logs = Path(config.run_dir).absolute() / names.LOGS
    # Named by its content: a pending job keeps the configuration that it was submitted with.
    path = logs / f"launch-{hashlib.sha256(to_yaml(config).encode()).hexdigest()[:12]}.yaml"
    chain = f"{where.job_name}-{secrets.token_hex(4)}" if where.chain else ""
    progress_of = shlex.join([sys.executable, "-m", "fitb.rundir.restart", config.run_dir])
    setup = [f"export FITB_CHAIN={shlex.quote(chain)}"] if chain else []
    setup.append(f"for _ in 1 2 3; do seen=$({progress_of}) && break; sleep 20; done")
    checks = []
    if where.preflight:
        words = [sys.executable, "-m", "fitb.cluster.preflight", "--config", str(path)]
        checks = [f"{shlex.join(words)} || exit $?"]
    decide = f'{progress_of} "$1" "${{seen:-0}}" "$room"'
    executor = make_executor(
        where,
        logs,
        setup=setup,
        checks=checks,
        chain=chain,
        decide=decide,
        restarts=config.stop.restarts,
    )
    processes = where.tasks_per_node if where.torchrun else 0
    task = DistillJob(("--config", str(path)), entry, chain=chain, processes=processes)
    return Submission(config, path, executor, task, where.chain or 1)


def submit_distill(
    flags: Sequence[str], where: argparse.Namespace, *, entry: str = DistillJob.entry
) -> tuple[list[submitit.Job[int]], Path]:
    """Check a configuration, write it and submit its job, or all jobs of its chain in order.

    Args:
        flags: flags of `fitb train`.
        where: flags of the submission.
        entry: entry point, as of DistillJob.
    Returns: the jobs, and the run folder.
    Raises: ConfigError, before anything is written; SystemFault if the scheduler refuses.
    """
    planned = plan_distill(flags, where, entry=entry)
    planned.path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(planned.path, to_yaml(planned.config))
    jobs = [submit_tasks(planned.executor, [planned.task])[0] for _ in range(planned.num_jobs)]
    return jobs, Path(planned.config.run_dir)


def wait_for(job: submitit.Job[int], run_dir: Path | None = None) -> int:
    """Wait for the end of a job, through all its requeues, and return its exit code.

    Args:
        job: submitted job; the last one of a chain.
        run_dir: run folder of a training job, which records how it ended; None for other jobs.
    """
    first = job.task(0) if job.num_tasks > 1 else job
    asked = time.monotonic()
    while not first.done():
        time.sleep(0.5)
        if isinstance(job, submitit.SlurmJob) and time.monotonic() - asked > STATE_POLL_S:
            asked = time.monotonic()
            try:
                if slurm.job_state(job.job_id) in ENDED:
                    break  # killed before it could write a result
            except SystemFault as error:
                logger.warning("%s; retrying", error)
    if first.paths.result_pickle.exists():
        with contextlib.suppress(FailedJobError, UncompletedJobError):
            return int(first.result())
    return _end_of(job, run_dir) if run_dir else CRASH


def _end_of(job: submitit.Job[int], run_dir: Path) -> int:
    """Return the exit code of a job without a result, from the records of its run."""
    task: Any = job.submission().function
    steps = parse(Config, "fitb train", task.flags).steps
    source = restart.Source(job.job_id, chain=task.chain)
    over = restart.already_over(run_dir, source=source, steps=steps)
    decided = [
        event["event"]
        for event in read_events(run_dir)
        if event.get("event") in ("requeue", "stop") and event.get("job") == job.job_id
    ]
    if over and not (decided and task.chain):  # a link runs once: its own decision is its end
        return over.exit_code
    if decided and decided[-1] == "stop":
        return STOP
    return RESUME if decided and task.chain else CRASH
