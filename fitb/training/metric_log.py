"""Metric logging: to metrics.jsonl, to the log as one line, and to Weights & Biases.

metrics.jsonl is the source of truth: one line per logged step, each step once across all attempts.
W&B mirrors it under one id per run (wandb_mirror.py), and its failures never stop training.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fitb.base import fsio
from fitb.base.log import ProgressLine
from fitb.base.wandb_login import login_of
from fitb.base.world import World
from fitb.config import Config
from fitb.rundir.clock import TRAINING
from fitb.rundir.ledger import Beat, Ledger, ledger
from fitb.rundir.names import STEP
from fitb.rundir.wandb_id import make_id
from fitb.rundir.writer import RunDir
from fitb.training.wandb_mirror import LATER, Mirror, reason_of, target_of

logger = logging.getLogger(__name__)
_DAY_S = 86_400.0
_PLAIN = {
    "train/loss": "loss {:.3f}",
    "student/loss_mlm": "mlm {:.3f}",
    "student/top1": "top1 {:.1%}",
    "val/loss_mlm": "val mlm {:.3f}",
    "val/top1": "val top1 {:.1%}",
    "perf/tokens_per_s": "{:,.0f} tokens/s",
}


@dataclass(frozen=True)
class Line:
    """The progress line of a logged step.

    Args:
        step: optimiser updates done.
        steps: total steps of the run.
        metrics: metrics of this step.
        validation: metrics of the last validation in this attempt.
    """

    step: int
    steps: int
    metrics: Mapping[str, float]
    validation: Mapping[str, float]

    def plain(self) -> str:
        """Return the line for a log file."""
        shown = [f"step {self.step}/{self.steps}"]
        shown += [text.format(self.metrics[n]) for n, text in _PLAIN.items() if n in self.metrics]
        if self.metrics.get("perf/steps_per_s"):
            left_s = (self.steps - self.step) / self.metrics["perf/steps_per_s"]
            shown.append(f"{left_s / 60:.1f} min left")
        return "  ".join(shown)

    def parts(self, end_s: float | None, now_s: float) -> list[str]:
        """Return the parts of the line for a terminal, the most important first.

        Args:
            end_s: expected end, Unix time in seconds; None if unknown.
            now_s: current Unix time in seconds.
        """
        shown = [f"step {self.step}/{self.steps}", f"{self.step / self.steps:.0%}"]
        if end_s is not None:
            form = "%H:%M" if end_s - now_s < _DAY_S else "%b %d %H:%M"
            shown.append(f"ends {time.strftime(form, time.localtime(end_s))}")
        known = {**self.validation, **self.metrics}
        names = ("train/loss", "val/loss_mlm", "perf/tokens_per_s")
        shown += [_PLAIN[name].format(known[name]) for name in names if name in known]
        if known.get("optim/loss_scale", 1.0) != 1.0:
            shown.append(f"scale {known['optim/loss_scale']:g}")
        return shown

    def expected_end_s(self, began_step: int, began_s: float, now_s: float) -> float | None:
        """Return the expected end in Unix time, at this attempt's overall rate; None if unknown.

        Args:
            began_step: first logged step of this attempt; at that step its own rate is used.
            began_s: Unix time of that step, in seconds.
            now_s: current Unix time in seconds.
        """
        rate = self.metrics.get("perf/steps_per_s", 0.0)
        if self.step > began_step and now_s > began_s:
            rate = (self.step - began_step) / (now_s - began_s)
        return now_s + (self.steps - self.step) / rate if rate else None


class Tracker:
    """Logs the metrics of a run, on rank 0 only."""

    def __init__(self, run: RunDir, config: Config, world: World) -> None:
        self._run, self._steps, self._world = run, config.steps, world
        self._mirror: Mirror | None = None
        self._progress = ProgressLine(logger)
        self._began: tuple[int, float] | None = None  # first logged step of this attempt, its time
        self._validation: dict[str, float] = {}  # metrics of the last one
        self.wandb_id = ""
        self._logged_until = -1
        self._begun = Beat(time.time(), run.clock.seconds())
        self._ledger: Ledger | None = None  # at that moment
        if world.is_main:
            self._ledger = ledger(run.path, self._begun.time_s, self._begun)
            self._handle = run.open_metrics()
            steps = (record[STEP] for record in fsio.read_records(run.metrics, STEP))
            self._logged_until = max((s for s in steps if type(s) is int), default=-1)
            self.wandb_id = make_id(run.path)
            mode = _mode(config.track.wandb)
            if mode != "disabled":
                target = target_of(self.wandb_id, run.name, config)
                self._mirror = Mirror(run.metrics, target, mode, run.path, self._logged_until)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of a step, if any; a step that an earlier attempt has logged is skipped.

        Args:
            step: optimiser updates done.
            metrics: name -> value, named as in docs/design.md.
        Raises: Replaced if another attempt has taken over the run.
        """
        if not (metrics and self._world.is_main):
            return
        self._show(step, metrics)
        if step <= self._logged_until:
            return
        self._run.check_owned()
        self._logged_until = step
        record = {STEP: step, **metrics, **self._goodput()}
        fsio.append_to(self._handle, self._run.metrics, record)
        if self._mirror:
            self._mirror.grown()

    def _goodput(self) -> dict[str, float]:
        """Return goodput, ETTR, and the shares of all other kinds of time, until now."""
        if not self._ledger:
            return {}
        now, before = Beat(time.time(), self._run.clock.seconds()), self._begun.seconds
        spent = {kind: seconds - before[kind] for kind, seconds in now.seconds.items()}
        grown = self._ledger.grown(self._world.size, spent, now.time_s - self._begun.time_s)
        shares = {kind: share for kind, share in grown.shares().items() if kind != TRAINING}
        own = {"goodput": grown.goodput, "ettr": grown.ettr, **shares}
        return {f"goodput/{name}": value for name, value in own.items()}

    def _show(self, step: int, metrics: dict[str, float]) -> None:
        now_s = time.time()
        self._began = self._began or (step, now_s)
        self._validation |= {name: metrics[name] for name in metrics if name.startswith("val/")}
        line = Line(step, self._steps, metrics, self._validation)
        end_s = line.expected_end_s(*self._began, now_s)
        self._progress.tell(line.parts(end_s, now_s), line.plain(), last=step == self._steps)

    def close(self, exit_code: int) -> None:
        """Close W&B, within the grace period of a preemption."""
        self._progress.end()
        if self._mirror:
            self._mirror.finish(exit_code)


def _mode(wanted: str) -> str:
    """Resolve `auto`: online if there is a W&B login; disabled if W&B cannot be imported."""
    if wanted != "auto":
        return wanted
    try:
        return login_of(os.environ).mode_of(wanted)
    except Exception as error:
        logger.warning("W&B is off (%s); %s", reason_of(error), LATER)
        return "disabled"
