"""`fitb rehearse`: signal a job as its cluster would, twice, and time its shutdown and restart.

The job runs with its own options in a separate run folder. It gets the signal of a time limit,
then that of a preemption; each time it saves, shuts down, is requeued and resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from fitb.base import signals
from fitb.base.errors import RESUME, ConfigError, SystemFault
from fitb.cluster import slurm, slurm_config
from fitb.cluster.local import train_command
from fitb.cluster.sbatch import read_options, values
from fitb.cluster.scripts import find_script
from fitb.config import Config
from fitb.config.launcher import LauncherArguments
from fitb.config.parser import parse
from fitb.rundir.events import when
from fitb.rundir.history import Attempt
from fitb.rundir.metrics import tail_records
from fitb.rundir.names import STEP
from fitb.tools.rehearse.jobs import Job, LocalJob, SlurmJob, attempts
from fitb.tools.rehearse.verdict import End, Inputs, Rehearsal, Shutdown, grace_periods

logger = logging.getLogger(__name__)
T = TypeVar("T")
STEPS = 5  # before each signal
POLL_S = 0.1
KILL_WAIT_S = 30.0  # Slurm's default
ENDS: dict[End, signal.Signals] = {
    "time limit": signals.TIME_LIMIT,
    "preemption": signals.PREEMPTION,
}
UNFIT = ("array", "wait", "wrap", "hold", "test-only")  # options of sbatch


def launcher_arguments() -> LauncherArguments:
    """Return the parser of the rehearsal's own flags."""
    parser = LauncherArguments("fitb rehearse")
    add = parser.add_argument
    choices = ("auto", "slurm", "local")
    add("--cluster", choices=choices, default="auto", help="where to run; auto detects Slurm")
    parser.add_sbatch()
    add("--script", help="batch script; default: distill.sh of `fitb scripts`")
    add("--processes", type=int, default=2, help="number of local processes, without Slurm")
    add("--minutes", type=float, default=30.0, help="time limit, including time in the queue")
    add("--rehearsal_dir", help="run folder of the rehearsal; default: RUN_DIR-rehearsal")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def rehearse(where: argparse.Namespace, flags: Sequence[str]) -> Rehearsal:
    """Run the job, stop it twice and end it.

    Raises:
        ConfigError: a flag is wrong; nothing was started.
        SystemFault: the job ended too early, or the time limit was reached.
        TrainingError: the job did not shut down gracefully.
    """
    script = choose_script(where.script)
    options = [word for text in where.sbatch for word in shlex.split(text)]
    asked = sbatch_options(script.read_text() if script else "", os.environ, options)
    default = slurm.default_run_dir(asked.get("job-name", "fitb"))
    words = ["--run_dir", default, *flags]
    config = parse(Config, "fitb rehearse", words, launcher=where.launcher)
    run_dir = Path(where.rehearsal_dir or f"{config.run_dir.rstrip('/')}-rehearsal")
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise ConfigError(f"{run_dir} is not empty; remove it, or give another --rehearsal_dir")
    flags = [*flags, "--run_dir", str(run_dir), "--track.every_steps", "1"]
    if config.track.wandb != "disabled":  # a rehearsal does not belong into the project
        flags += ["--track.wandb", "offline"]
    lead_s = slurm_config.signal_lead_s(asked.get("signal"))
    if not slurm.is_chosen(where.cluster):
        config.grad_accum(where.processes)
        job = LocalJob(train_command(flags), where.processes, run_dir)
        shutdowns = perform(job, run_dir, where.minutes)
        inputs = Inputs(
            lead_s or slurm_config.DEFAULT_LEAD_S, None, KILL_WAIT_S, "KillWait (by default)"
        )
        return Rehearsal(str(run_dir), job.name, shutdowns, grace_periods(shutdowns, inputs), [])
    if script is None:
        raise ConfigError("slurm/distill.sh is not found; give --script")
    return _on_slurm(SlurmJob(script, options, flags, run_dir), run_dir, where.minutes, lead_s)


def _on_slurm(job: SlurmJob, run_dir: Path, minutes: float, lead_s: float | None) -> Rehearsal:
    settings = slurm_config.parse_config(slurm.ask("scontrol", "show", "config"))
    partitions = slurm_config.parse_partitions(slurm.ask("scontrol", "show", "partition"))
    shutdowns = perform(job, run_dir, minutes)
    partition = slurm_config.choose_partition(partitions, job.running.get("Partition"))
    kill_s, name = slurm_config.preemption_lead_s(settings, partition)
    inputs = Inputs(
        limit_s=lead_s,
        attempt_s=slurm_config.seconds(job.running.get("TimeLimit", "")),
        preemption_s=kill_s,
        preemption=name,
        requeues=slurm_config.preempt_mode(settings, partition) != "CANCEL",
    )
    found = slurm_config.findings(settings, partition, job.running)
    return Rehearsal(str(run_dir), job.name, shutdowns, grace_periods(shutdowns, inputs), found)


def choose_script(name: str | None) -> Path | None:
    """Return the batch script of that name, or distill.sh as `fitb scripts` finds it.

    Raises: ConfigError if the named file does not exist.
    """
    if name and not Path(name).is_file():
        raise ConfigError(f"--script {name}: no such file")
    return Path(name) if name else find_script()


def sbatch_options(script: str, env: Mapping[str, str], words: Sequence[str]) -> dict[str, str]:
    """Return the job's options by name, as sbatch would read them.

    Raises: ConfigError for an option with which a job cannot be rehearsed.
    """
    options = read_options(script, env, words)
    if unfit := [name for name in UNFIT if name in options]:
        raise ConfigError(
            f"a job with {', '.join(unfit)} cannot be rehearsed; leave that option of sbatch out"
        )
    return values(options)


class _Patience:
    """Waiting for a job with a deadline, interrupted by Ctrl-C."""

    def __init__(self, job: Job, minutes: float) -> None:
        self._job, self._minutes = job, minutes
        self._deadline_s = time.monotonic() + 60 * minutes
        self._told: list[int] = []

    @contextlib.contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Defer SIGINT, SIGTERM and SIGHUP until `wait`, which raises KeyboardInterrupt.

        So they never interrupt the submission or the cancellation of a job.
        """
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heeded = [n for n in numbers if signal.getsignal(n) != signal.SIG_IGN]  # of nohup
        with signals.handled(heeded, lambda number, _: self._told.append(number)):
            yield

    def wait(self, condition: Callable[[], T | None], what: str) -> T:
        """Wait until the condition returns something, and return that."""
        while True:
            if self._told:
                raise KeyboardInterrupt
            found = condition()
            if found is not None:
                return found
            self._job.check()
            if time.monotonic() > self._deadline_s:
                raise SystemFault(
                    f"waiting for {what}: --minutes {self._minutes:g} are over; give more, or check"
                    " the queue"
                )
            time.sleep(POLL_S)


def perform(job: Job, run_dir: Path, minutes: float) -> list[Shutdown]:
    """Start the job, let it shut down and restart once for each of ENDS, and end it in any case.

    Raises: SystemFault, TrainingError, KeyboardInterrupt; the job is ended first.
    """
    patience = _Patience(job, minutes)
    with patience.heeding_signals():
        try:
            job.start()
            logger.info("%s in %s", job.name, run_dir)
            return [_shut_down(job, run_dir, patience, end) for end in ENDS]
        finally:
            job.close()


def _shut_down(job: Job, run_dir: Path, patience: _Patience, end: End) -> Shutdown:
    number = ENDS[end]
    first = patience.wait(lambda: _begun(run_dir), "an attempt")
    patience.wait(lambda: _reached(run_dir, first.first_step + STEPS), f"{STEPS} steps")
    logger.info("%s, as at a %s", number.name, end)
    told_s = time.time()
    job.tell(number)
    ended = patience.wait(lambda: _ended(run_dir, first.number), f"the end after {number.name}")
    saved_s = elapsed_s(told_s, _committed(ended), time.time())
    left = patience.wait(job.left, "the requeue")
    left_s = elapsed_s(told_s, [left], time.time())
    logger.info("saved step %d in %.2f s, left after %.2f s", ended.last_step, saved_s, left_s)
    decided_s = told_s + left_s
    back_s = patience.wait(job.back, "the next attempt") - decided_s
    runs_s = decided_s + back_s
    patience.wait(lambda: _reached(run_dir, ended.last_step + 1), "the first step after a restart")
    start_s = time.time() - runs_s
    again = attempts(run_dir)[-1]
    logger.info("resumed at step %d after %.2f s", again.first_step, back_s + start_s)
    return Shutdown(
        end=end,
        signal=number.name,
        step=ended.last_step,
        saved_s=saved_s,
        left_s=left_s,
        back_s=max(0.0, back_s),
        start_s=start_s,
        start_parts=again.start_s,
        steps_lost=max(0, ended.last_step - again.first_step),
    )


def elapsed_s(told_s: float, moments: Sequence[float], seen_s: float) -> float:
    """Return the seconds from a signal to its effect.

    Args:
        told_s: our clock when the signal was sent.
        moments: times of the effect on the hosts' clocks, best first; impossible ones, because
            the clocks differ, are ignored.
        seen_s: our clock when we saw the effect.
    """
    return next((m for m in moments if told_s <= m <= seen_s), seen_s) - told_s


def _begun(run_dir: Path) -> Attempt | None:
    found = attempts(run_dir)
    return found[-1] if found and found[-1].number and found[-1].exit_code is None else None


def _reached(run_dir: Path, step: int) -> int | None:
    records = tail_records(run_dir)
    return step if records and records[-1][STEP] >= step else None


def _ended(run_dir: Path, number: int) -> Attempt | None:
    found = next(a for a in attempts(run_dir) if a.number == number)
    return found if found.exit_code == RESUME else None


def _committed(ended: Attempt) -> list[float]:
    """Return the times of the last save and of the stop after it, in case that save is older."""
    saves = [when(event) for event in ended.saves[-1:]]
    moments: list[datetime | None] = [*saves, ended.ended]
    return [moment.timestamp() for moment in moments if moment]
