"""The job of a rehearsal: a Slurm job, or local processes.

Both are started once, signalled, waited for until they run again, and ended in any case.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from fitb.base import signals
from fitb.base.errors import RESUME, SystemFault, TrainingError
from fitb.base.job_states import ENDED, FORGOTTEN
from fitb.cluster import slurm, slurm_config
from fitb.cluster.local import LocalRun
from fitb.rundir import names
from fitb.rundir.events import read_events
from fitb.rundir.history import Attempt, attempts_of

logger = logging.getLogger(__name__)
ASK_S = 1.0  # between two queries to the controller
SOON_S = 5.0
CANCEL_S = 120.0


def attempts(run_dir: Path) -> list[Attempt]:
    return attempts_of(read_events(run_dir))


def log_file(run_dir: Path) -> Path:
    """Make the folder of logs; return the path of the job's log in it."""
    (run_dir / names.LOGS).mkdir(parents=True, exist_ok=True)
    return run_dir / names.LOGS / "rehearsal.out"


class SlurmJob:
    """A job of slurm/distill.sh.

    Args:
        script: batch script.
        options: options of sbatch.
        flags: flags of `fitb train`.
        run_dir: run folder of the rehearsal.
    """

    def __init__(
        self, script: Path, options: Sequence[str], flags: Sequence[str], run_dir: Path
    ) -> None:
        self._command = [str(script), *flags]
        self._options, self._run_dir = options, run_dir
        self._asked_s, self._hurried_s = 0.0, 0.0
        self._restarts = 0
        self._shutdowns = 0
        self._id = ""
        self.name = "no job yet"
        self.record: dict[str, str] = {}
        self.running: dict[str, str] = {}  # the last record of the running job

    def start(self) -> None:
        """Submit the job. Raises: SystemFault if Slurm refuses it."""
        log = str(log_file(self._run_dir)).replace("%", "%%")  # a pattern to Slurm
        own = ("--parsable", f"--output={log}")
        answer = slurm.ask("sbatch", *own, *self._options, *self._command, timeout_s=600)
        self._id = answer.splitlines()[-1].split(";")[0]
        self.name = f"job {self._id}"
        self.check()
        found = slurm_config.requeue({}, self.record)
        if found.verdict == "bad":
            raise SystemFault(f"{self.name} has {found.name}={found.value}: {found.sentence}")

    def tell(self, number: signal.Signals) -> None:
        """Send a signal as the scheduler would."""
        # A time limit signals the batch script, a preemption the tasks.
        where = ["--batch"] if number == signals.TIME_LIMIT else []
        slurm.ask("scancel", *where, f"--signal={signals.slurm_name(number)}", self._id)

    def left(self) -> float | None:
        """Return the Unix time at which the attempt ended and its requeue was decided, or None."""
        decided = [a for a in attempts(self._run_dir) if a.decision]
        if len(decided) <= self._shutdowns:
            return None
        attempt = decided[self._shutdowns]
        self._shutdowns += 1
        return attempt.decided_at.timestamp() if attempt.decided_at else time.time()

    def back(self) -> float | None:
        """Return the Unix time at which the next attempt was seen running, or None."""
        self.check()
        if int(self.record.get("Restarts", 0)) <= self._restarts:
            return None
        if self.record.get("JobState") != "RUNNING":
            self._hurry()
            return None
        self._restarts += 1
        return time.time()

    def _hurry(self) -> None:
        """Shorten Slurm's delay of two minutes for a requeued job, if users may."""
        if self.record.get("Reason") != "BeginTime" or time.monotonic() - self._hurried_s < SOON_S:
            return
        with contextlib.suppress(ValueError):
            start = datetime.datetime.fromisoformat(self.record["StartTime"])
            if (start - datetime.datetime.now()).total_seconds() < SOON_S:
                return
        self._hurried_s = time.monotonic()
        try:  # not to zero: within a second of the requeue a host refuses the new start
            slurm.ask("scontrol", "update", f"JobId={self._id}", "StartTime=now+2seconds")
        except SystemFault as error:
            logger.info("Slurm's delay cannot be shortened: %s", error)

    def check(self) -> None:
        """Raise SystemFault if the job is over, TrainingError if an attempt failed."""
        if time.monotonic() - self._asked_s < ASK_S:
            return
        before = self.record.get("JobState")
        state = self._ask()
        if state != before:
            reason = self.record.get("Reason", "None")
            logger.info("%s: %s%s", self.name, state, f" ({reason})" if reason != "None" else "")
        if state in ENDED:
            raise SystemFault(
                f"{self.name} ended ({state}, exit code {self.record.get('ExitCode', '?')}) before"
                f" the rehearsal did; see the logs in {self._run_dir / names.LOGS}, or give it more"
                " --steps if it finished them"
            )
        for attempt in attempts(self._run_dir):
            if attempt.decision and attempt.exit_code != RESUME:
                raise TrainingError(
                    f"attempt {attempt.number} of {self.name} did not shut down gracefully:"
                    f" {attempt.decided}; see the logs in {self._run_dir / names.LOGS}"
                )

    def _ask(self) -> str:
        """Return the job's state, or the last known one if the controller is busy."""
        self._asked_s = time.monotonic()
        try:
            found = slurm.job_record(self._id)
            if not found:
                return FORGOTTEN
            self.record = found
        except SystemFault as error:
            logger.warning("%s; asking again", error)
        state = self.record.get("JobState", "UNKNOWN")
        if state == "RUNNING":
            self.running = self.record
        return state

    def close(self) -> None:
        """Cancel the job, and make sure that it stays cancelled."""
        if not self._id:
            return
        quiet, deadline_s = 0, time.monotonic() + CANCEL_S
        while True:
            state = self._ask()
            quiet = quiet + 1 if state in ENDED else 0
            if quiet == 2:  # its script may requeue it while it is being cancelled
                break
            if not quiet:
                with contextlib.suppress(SystemFault):
                    slurm.ask("scancel", self._id)
            if time.monotonic() > deadline_s:
                logger.error("%s is still %s; `scancel %s`", self.name, state, self._id)
                return
            time.sleep(ASK_S)
        logger.info("%s is cancelled", self.name)


class LocalJob:
    """Local processes with the interface of a SlurmJob.

    Args:
        command: command of each process.
        num_processes: world size.
        run_dir: run folder of the rehearsal.
    """

    def __init__(self, command: Sequence[str], num_processes: int, run_dir: Path) -> None:
        self._command, self._num_processes = command, num_processes
        self._run_dir = run_dir
        self._run: LocalRun | None = None
        self._output: IO[bytes] | None = None
        self.name = f"{num_processes} processes"

    def start(self) -> None:
        self._output = self._output or open(log_file(self._run_dir), "ab")  # noqa: SIM115 - close()
        self._run = LocalRun(self._command, self._num_processes, output=self._output)

    def tell(self, number: signal.Signals) -> None:
        if self._run:
            self._run.signal(number)

    def left(self) -> float | None:
        if self._run is None or self._run.running():
            return None
        self.check()
        self._end()
        return time.time()

    def back(self) -> float | None:
        self.start()
        return time.time()

    def check(self) -> None:
        if self._run and not self._run.running() and (code := self._run.wait()) != RESUME:
            raise SystemFault(
                f"{self.name} ended with {code} before the rehearsal did, expected {RESUME}; see"
                f" {log_file(self._run_dir)}, or give it more --steps if it finished them"
            )

    def _end(self) -> None:
        if self._run:
            self._run.kill()
            self._run = None

    def close(self) -> None:
        self._end()
        if self._output:
            self._output.close()
            self._output = None


Job = SlurmJob | LocalJob
