"""The job of a rehearsal: submitted to Slurm, or as processes of this machine.

Both are started once, told to leave, waited for until they are back, and ended whatever happens.
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
from fitb.rundir.events import read_events
from fitb.rundir.history import Attempt, attempts_of

logger = logging.getLogger(__name__)
ASK_S = 1.0  # between two questions to the controller
SOON_S = 5.0
CANCEL_S = 120.0


def attempts(run_dir: Path) -> list[Attempt]:
    return attempts_of(read_events(run_dir))


class SlurmJob:
    """The job of slurm/distill.sh.

    Args:
        script: to submit.
        options: of sbatch.
        flags: of `fitb train`.
        run_dir: of the rehearsal.
    """

    def __init__(
        self, script: Path, options: Sequence[str], flags: Sequence[str], run_dir: Path
    ) -> None:
        self._command = [str(script), *flags]
        self._options, self._run_dir = options, run_dir
        self._asked_s, self._hurried_s = 0.0, 0.0
        self._restarts = 0
        self._lefts = 0
        self._id = ""
        self.name = "no job yet"
        self.record: dict[str, str] = {}
        self.running: dict[str, str] = {}  # its record while it ran

    def start(self) -> None:
        """Start it. Raises: SystemFault where it is not accepted."""
        logs = self._run_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        folder = str(logs).replace("%", "%%")  # to Slurm a pattern
        own = ("--parsable", f"--output={folder}/rehearsal.out")
        answer = slurm.ask("sbatch", *own, *self._options, *self._command, timeout_s=600)
        self._id = answer.splitlines()[-1].split(";")[0]
        self.name = f"job {self._id}"
        self.check()
        found = slurm_config.requeue({}, self.record)
        if found.verdict == "bad":
            raise SystemFault(f"{self.name} has {found.name}={found.value}: {found.sentence}")

    def tell(self, number: signal.Signals) -> None:
        """Send a signal as the scheduler would."""
        # USR1 reaches the batch script, as before a time limit; TERM the tasks, as in a preemption.
        where = ["--batch"] if number == signals.TIME_LIMIT else []
        slurm.ask("scancel", *where, f"--signal={signals.slurm_name(number)}", self._id)

    def left(self) -> float | None:
        """Unix time at which the attempt was left and its return decided; None until then."""
        decided = [a for a in attempts(self._run_dir) if a.decision]
        if len(decided) <= self._lefts:
            return None
        attempt = decided[self._lefts]
        self._lefts += 1
        return attempt.decided_at.timestamp() if attempt.decided_at else time.time()

    def back(self) -> float | None:
        """Unix time at which the next attempt was seen to run; None until then."""
        self.check()
        if int(self.record.get("Restarts", 0)) <= self._restarts:
            return None
        if self.record.get("JobState") != "RUNNING":
            self._hurry()
            return None
        self._restarts += 1
        return time.time()

    def _hurry(self) -> None:
        """Shorten the two minutes that Slurm makes a requeued job wait, where it lets users."""
        if self.record.get("Reason") != "BeginTime" or time.monotonic() - self._hurried_s < SOON_S:
            return
        with contextlib.suppress(ValueError):
            start = datetime.datetime.fromisoformat(self.record["StartTime"])
            if (start - datetime.datetime.now()).total_seconds() < SOON_S:
                return
        self._hurried_s = time.monotonic()
        try:  # not to nothing: within a second of the requeue a host refuses the new start
            slurm.ask("scontrol", "update", f"JobId={self._id}", "StartTime=now+2seconds")
        except SystemFault as error:
            logger.info("it waits as long as Slurm makes it: %s", error)

    def check(self) -> None:
        """Raise SystemFault where the job is over."""
        if time.monotonic() - self._asked_s < ASK_S:
            return
        before = self.record.get("JobState")
        state = self._ask()
        if state != before:
            reason = self.record.get("Reason", "None")
            logger.info("%s: %s%s", self.name, state, f" ({reason})" if reason != "None" else "")
        if state in ENDED:
            raise SystemFault(
                f"{self.name} is over ({state}, exit code {self.record.get('ExitCode', '?')})"
                f" before the rehearsal was; {self._run_dir}/logs/rehearsal.out and the task logs"
                " beside it say why. If all its steps were done, give it more --steps"
            )
        for attempt in attempts(self._run_dir):
            if attempt.decision and attempt.exit_code != RESUME:
                raise TrainingError(
                    f"attempt {attempt.number} of {self.name} did not leave in good order:"
                    f" {attempt.decided}; the logs in {self._run_dir}/logs say why"
                )

    def _ask(self) -> str:
        """The job's state now, or the last that is known where the controller is busy."""
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
        """End it, and see that it stays so."""
        if not self._id:
            return
        quiet, deadline_s = 0, time.monotonic() + CANCEL_S
        while True:
            state = self._ask()
            quiet = quiet + 1 if state in ENDED else 0
            if quiet == 2:  # its script may requeue it in the moment in which it is cancelled
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
    """Processes of this machine, to be handled as a SlurmJob.

    Args:
        command: of each.
        num_processes: world size.
        run_dir: of the rehearsal.
    """

    def __init__(self, command: Sequence[str], num_processes: int, run_dir: Path) -> None:
        self._command, self._num_processes = command, num_processes
        self._run_dir = run_dir
        self._run: LocalRun | None = None
        self._output: IO[bytes] | None = None
        self.name = f"{num_processes} processes"

    def start(self) -> None:
        logs = self._run_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._output = self._output or open(logs / "rehearsal.out", "ab")  # noqa: SIM115 - close()
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
                f"{self.name} ended with {code} before the rehearsal was over, expected {RESUME};"
                f" {self._run_dir}/logs/rehearsal.out says why. If all its steps were done, give it"
                " more --steps"
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
