"""The verdict of a rehearsal: seconds that a shutdown took against those that the cluster gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fitb.cluster import slurm_config

End = Literal["time limit", "preemption"]
SAFETY = 3.0  # a lead is to be so many times what was needed: no filesystem is always so quick


@dataclass(frozen=True)
class Shutdown:
    """One graceful shutdown and the way back, in seconds.

    Args:
        end: what was played.
        signal: that was sent.
        step: at which the job left.
        saved_s: from the signal to the committed checkpoint.
        left_s: from the signal until all tasks had ended and the return was decided.
        back_s: from there until the job ran again; under Slurm hurried where that is allowed.
        start_s: from there to the first step.
        start_parts: as the job itself counts, by part; empty where it does not.
        steps_lost: done again after the return.
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
    """What the cluster gives a job at its ends.

    Args:
        limit_s: lead of --signal; None where there is none.
        attempt_s: time limit of an attempt; None is none.
        preemption_s: from the signal of a preemption to SIGKILL; None where there is none.
        preemption: what that is called.
        requeues: Slurm itself requeues what it preempts; else the job must do it within its lead.
    """

    limit_s: float | None
    attempt_s: float | None
    preemption_s: float | None
    preemption: str
    requeues: bool = True


@dataclass(frozen=True)
class GracePeriod:
    """What an end gives, against what the job needed.

    Args:
        name: as Slurm has it.
        given_s: seconds between the signal and the end; None where there is no such end.
        needed_s: seconds that the rehearsal took.
        suffices: given is SAFETY times what is needed.
        sentence: for people.
    """

    name: str
    given_s: float | None
    needed_s: float
    suffices: bool
    sentence: str


@dataclass(frozen=True)
class Rehearsal:
    """What was found.

    Args:
        run_dir: of the rehearsal, left behind to be looked at.
        job: that was run.
        leaves: one per end.
        leads: one per end.
        site: what Slurm does to such a job; empty where there is none.
    """

    run_dir: str
    job: str
    leaves: list[Shutdown]  # keys of the JSON
    leads: list[GracePeriod]
    site: list[slurm_config.Finding]

    @property
    def reasons(self) -> list[str]:
        """Why the job is not safe here; empty where it is."""
        lost = [f"{e.steps_lost} steps were lost at the {e.end}" for e in self.leaves]
        lost = [text for text in lost if not text.startswith("0 ")]
        short = [lead.sentence for lead in self.leads if not lead.suffices]
        bad = [f"{f.name}={f.value}: {f.sentence}" for f in self.site if f.verdict == "bad"]
        return [*lost, *short, *bad]


def grace_periods(shutdowns: Sequence[Shutdown], inputs: Inputs) -> list[GracePeriod]:
    """Hold what each end needed against what the cluster gives.

    A time limit ends a job that has not requeued itself by then. What is preempted Slurm requeues,
    so there it is enough to have saved.
    """
    return [
        _at_limit(one, inputs) if one.end == "time limit" else _at_preemption(one, inputs)
        for one in shutdowns
    ]


def _at_limit(shutdown: Shutdown, inputs: Inputs) -> GracePeriod:
    lead_s = inputs.limit_s
    if lead_s is None:
        sentence = "no --signal: the time limit comes without a word; give --signal=B:USR1@300"
        return GracePeriod("--signal", None, shutdown.left_s, False, sentence)
    if inputs.attempt_s is not None and inputs.attempt_s <= lead_s:
        sentence = (
            f"--time is {inputs.attempt_s:g} s and the lead of --signal {lead_s:g} s: an attempt"
            " would be told to leave when it starts; raise --time"
        )
        return GracePeriod("--signal", lead_s, shutdown.left_s, False, sentence)
    return _weigh("--signal", lead_s, shutdown.left_s, "save, leave and ask to be requeued")


def _at_preemption(shutdown: Shutdown, inputs: Inputs) -> GracePeriod:
    if inputs.preemption_s is None:
        sentence = "jobs of this partition are not preempted"
        return GracePeriod(inputs.preemption, None, shutdown.saved_s, True, sentence)
    if inputs.requeues:
        return _weigh(inputs.preemption, inputs.preemption_s, shutdown.saved_s, "save")
    what = "save, leave and ask to be requeued"
    return _weigh(inputs.preemption, inputs.preemption_s, shutdown.left_s, what)


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
    """Return 0 where the job can be stopped at any time, else 1."""
    return 1 if found.reasons else 0


def render(found: Rehearsal) -> str:
    """Return a page for people."""
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
            yield f"{'':12} its start: {parts}"
    yield ""
    for period in found.leads:
        yield f"  {'ok' if period.suffices else 'bad':<5}{period.sentence}"
    if found.site:
        yield slurm_config.render(found.site)
    yield ""
    if found.reasons:
        yield "This job may lose work here:"
        yield from (f"  {reason}" for reason in found.reasons)
    else:
        yield "This job can be stopped here at any time."
