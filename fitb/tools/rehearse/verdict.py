"""Verdict of a rehearsal: the time that a shutdown took against the grace period."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fitb.cluster import slurm_config

End = Literal["time limit", "preemption"]
_REQUEUED = "save, shut down and requeue"
SAFETY = 3.0  # grace period over time needed; filesystems are not always equally fast


@dataclass(frozen=True)
class Shutdown:
    """One graceful shutdown and restart, in seconds.

    Args:
        end: simulated event.
        signal: signal sent.
        step: last step before the shutdown.
        saved_s: time from the signal to the committed checkpoint.
        left_s: time from the signal until all tasks had ended and the requeue was decided.
        back_s: time from there until the job ran again; shortened if Slurm allows it.
        start_s: time from there to the first step.
        start_parts: duration of each part of the start as the job logs it; may be empty.
        steps_lost: steps done again after the restart.
    """

    end: End
    signal: str
    step: int
    saved_s: float
    left_s: float
    back_s: float
    start_s: float
    start_parts: dict[str, float]
    steps_lost: int


@dataclass(frozen=True)
class Inputs:
    """Grace periods that the cluster gives a job.

    Args:
        limit_s: seconds of --signal before the time limit; None without --signal.
        attempt_s: time limit of an attempt, seconds; None for unlimited.
        preemption_s: seconds from a preemption's signal to SIGKILL; None if jobs are not preempted.
        preemption: Slurm's name of that period.
        requeues: whether Slurm requeues preempted jobs; else the job must requeue itself in time.
    """

    limit_s: float | None
    attempt_s: float | None
    preemption_s: float | None
    preemption: str
    requeues: bool = True


@dataclass(frozen=True)
class GracePeriod:
    """A grace period against the time that the job needed.

    Args:
        name: Slurm's name of the period.
        given_s: seconds between the signal and the kill; None if there is no such period.
        needed_s: seconds that the job needed.
        suffices: whether the period is at least SAFETY times that.
        sentence: the comparison in words.
    """

    name: str
    given_s: float | None
    needed_s: float
    suffices: bool
    sentence: str


@dataclass(frozen=True)
class Rehearsal:
    """Result of a rehearsal.

    Args:
        run_dir: run folder of the rehearsal, which is kept.
        job: name of the job.
        leaves: one shutdown per simulated event.
        leads: one grace period per simulated event.
        site: findings about Slurm's settings; empty without Slurm.
    """

    run_dir: str
    job: str
    leaves: list[Shutdown]  # keys of the JSON
    leads: list[GracePeriod]
    site: list[slurm_config.Finding]

    @property
    def reasons(self) -> list[str]:
        """Why the job may lose work on this cluster; empty if it is safe."""
        ends = [one for one in self.leaves if one.steps_lost]
        lost = [f"{one.steps_lost} steps were lost at the {one.end}" for one in ends]
        short = [lead.sentence for lead in self.leads if not lead.suffices]
        bad = [f"{f.name}={f.value}: {f.sentence}" for f in self.site if f.verdict == "bad"]
        return [*lost, *short, *bad]


def grace_periods(shutdowns: Sequence[Shutdown], inputs: Inputs) -> list[GracePeriod]:
    """Compare the time that each shutdown needed with its grace period.

    Before a time limit the job must requeue itself; if Slurm requeues preempted jobs, saving in
    time is enough there.
    """
    judges = {"time limit": _at_limit, "preemption": _at_preemption}
    return [judges[one.end](one, inputs) for one in shutdowns]


def _at_limit(shutdown: Shutdown, inputs: Inputs) -> GracePeriod:
    lead_s = inputs.limit_s
    if lead_s is None:
        sentence = "no --signal: the time limit kills the job; give --signal=B:USR1@300"
        return GracePeriod("--signal", None, shutdown.left_s, False, sentence)
    if inputs.attempt_s is not None and inputs.attempt_s <= lead_s:
        sentence = f"--time={inputs.attempt_s:g} s, and --signal comes {lead_s:g} s before its end:"
        sentence += " an attempt would stop as it starts; raise --time"
        return GracePeriod("--signal", lead_s, shutdown.left_s, False, sentence)
    return _weigh("--signal", lead_s, shutdown.left_s, _REQUEUED)


def _at_preemption(shutdown: Shutdown, inputs: Inputs) -> GracePeriod:
    if inputs.preemption_s is None:
        sentence = "jobs of this partition are not preempted"
        return GracePeriod(inputs.preemption, None, shutdown.saved_s, True, sentence)
    if inputs.requeues:
        return _weigh(inputs.preemption, inputs.preemption_s, shutdown.saved_s, "save")
    return _weigh(inputs.preemption, inputs.preemption_s, shutdown.left_s, _REQUEUED)


def _weigh(name: str, given_s: float, needed_s: float, what: str) -> GracePeriod:
    suffices = given_s >= SAFETY * needed_s
    sentence = f"{name} gives {given_s:g} s, {given_s / max(needed_s, 1e-3):.1f} times the"
    sentence += f" {needed_s:.2f} s that it took to {what}"
    if not suffices:
        sentence += f"; at least {SAFETY:g} times is safe: raise it to {SAFETY * needed_s:.0f} s"
    return GracePeriod(name, given_s, needed_s, suffices, sentence)


def as_json(found: Rehearsal) -> dict[str, Any]:
    return {**asdict(found), "reasons": found.reasons}


def exit_code(found: Rehearsal) -> int:
    """Return 0 if the job can be stopped at any time, else 1."""
    return 1 if found.reasons else 0


def render(found: Rehearsal) -> str:
    """Render the result for people."""
    return "\n".join(_lines(found))


def _lines(found: Rehearsal) -> Iterator[str]:
    yield f"rehearsed with {found.job} in {found.run_dir}"
    yield ""
    yield "seconds      signal    saved    left    back  first step  at step  steps lost"
    for one in found.leaves:
        yield (
            f"{one.end:<12} {one.signal:<8}{one.saved_s:>7.2f}{one.left_s:>8.2f}"
            f"{one.back_s:>8.2f}{one.start_s:>12.2f}{one.step:>9}{one.steps_lost:>12}"
        )
        if one.start_parts:
            parts = ", ".join(f"{name} {s:.1f}" for name, s in one.start_parts.items())
            yield f"{'':12} start: {parts}"
    yield ""
    for period in found.leads:
        yield f"  {'ok' if period.suffices else 'bad':<5}{period.sentence}"
    if found.site:
        yield slurm_config.render(found.site)
    yield ""
    if found.reasons:
        yield "This job may lose work on this cluster:"
        yield from (f"  {reason}" for reason in found.reasons)
    else:
        yield "This job can be stopped at any time on this cluster."
