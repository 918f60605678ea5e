"""The real training under test: its steps, its ranks, and how they are made to stand still."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from conftest import Run
from machine import wait_until
from traced import weights

from fitb.base.fsio import read_lines

TIMEOUT_S = 300
RANK = ("-m", "fitb", "train")
TORCHRUN_RANK = ("-u", *RANK)
SUBMITIT_RANK = ("-u", "-m", "submitit.core._submit")


def steps(run: Run) -> list[int]:
    return [record["train/step"] for record in read_lines(run.folder / "metrics.jsonl")]


def wait_for_step(run: Run, job: str, step: int) -> None:
    """Hurry the job, where it was requeued, and wait until it has logged a step."""

    def logged() -> bool:
        run.cluster.hurry(job)
        return steps(run)[-1:] >= [step]

    wait_until(logged, TIMEOUT_S, f"step {step}", poll_s=0.02)


def ranks(run: Run, words: tuple[str, ...]) -> list[int]:
    found = [pid for host in run.cluster.hosts for pid in run.cluster.processes(host, *words)]
    assert len(found) == 2
    return found


@contextlib.contextmanager
def standing_still(run: Run, words: tuple[str, ...] = RANK) -> Iterator[None]:
    """Let no rank make a step from here until the signal that the block sends has reached it.

    Slurm takes seconds for a preemption, in which a fast machine would make all steps.
    """
    pids = ranks(run, words)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
        wait_until(lambda: all(map(signalled, pids)), 90, "the signal")
    except TimeoutError as error:
        reached = [pid for pid in pids if signalled(pid)]
        raise TimeoutError(f"{error}; reached {reached} of {pids}\n{run.logs()}") from None
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def signalled(pid: int) -> bool:
    """Whether SIGUSR1 or SIGTERM waits for a stopped process, or it goes on again."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    waiting = int(fields["ShdPnd"], 16) & (1 << signal.SIGUSR1 - 1 | 1 << signal.SIGTERM - 1)
    return bool(waiting) or not fields["State"].startswith("T")


def assert_ended_as(run: Run, straight: Path) -> None:
    """Every step is there once, and the weights are those of a run that nothing interrupted."""
    assert steps(run) == list(range(1, run.payload.steps + 1))
    assert weights(run.folder) == weights(straight) != {}
