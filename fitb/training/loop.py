"""The main road: read rows, agree, update, log, save, until the end or a signal.

Read this first. A step reads this rank's share of one global batch (fitb/data), asks the teacher,
and updates the student (engine.py). There is no state but the weights, Adam's moments, the loss
scale, the number of the step and the best validation so far: order, masks, dropout and learning
rate follow from the step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from fitb.base import log
from fitb.base.errors import CRASH, FINISHED, RESUME, STOP, FitbError
from fitb.base.world import World
from fitb.config import Config
from fitb.rundir.writer import RunDir
from fitb.training.meter import Meter, embedding_norms
from fitb.training.milestones import due, evaluate, mend_export, out_of_patience, save
from fitb.training.setup import Parts, build, open_run
from fitb.training.stop import StopFlag
from fitb.training.track import Tracker
from fitb.training.watch import Watch, Watchdog
from fitb.training.zero import leave_distributed, start_distributed

logger = logging.getLogger(__name__)


def train(config: Config, on_end: Callable[[int], None] | None = None) -> int:
    """Begin a run or go on with it; return its exit code, the same on every rank."""
    world = World.from_env(os.environ)
    log.setup(world.rank)
    watchdog = Watchdog(config.stop.hang_s)
    stop = StopFlag(config.stop.time_budget_min).install()
    run = watch = tracker = step = None
    code, reason = CRASH, "an error that is not fitb's own; the log has it"
    try:
        device = start_distributed(config, world)
        run, config = open_run(config, world)
        watch = Watch(run, world, config.stop.hang_s, watchdog, on_end)
        parts = build(config, run, world, device)
        tracker = Tracker(run, config, world)
        mend_export(parts, run, config)
        reason = _train(parts, config, run, tracker, watch, stop)
        code = FINISHED if reason in ("all steps done", "early stopping") else RESUME
        step = parts.progress.step
        logger.info("stopped at step %d: %s, exit code %d", step, reason, code)
    except FitbError as error:
        code, reason = CRASH if error.restart_helps else STOP, str(error)
        logger.error("%s", error)
    finally:
        if run:
            run.event("stop", reason=reason, exit_code=code, step=step)
        for part in (watch, tracker, run, watchdog):
            if part:
                part.leave(code)
    if code in (FINISHED, RESUME):
        leave_distributed()
    return code


def _train(
    parts: Parts, config: Config, run: RunDir, tracker: Tracker, watch: Watch, stop: StopFlag
) -> str:
    """Train until there is a reason to stop, save, and return the reason."""
    engine, progress, meter = parts.engine, parts.progress, Meter(parts, config)
    saved_step = progress.step
    if out_of_patience(progress, config):  # it stopped early, and is started again
        return "early stopping"
    reason = "all steps done"
    for step, batch in stop.guard(parts.stream.iter_from(progress.step, config.steps, stop.noted)):
        stopped, counts = stop.agree(engine.counts(batch))
        if stopped:
            reason = stopped
            break
        assert batch is not None  # only where the ranks stop
        result = engine.train_step(step, batch, counts)
        progress.step = step + 1
        watch.moved(progress.step)
        metrics = meter.read(progress.step, result)
        if metrics:
            metrics |= embedding_norms(parts)
        if due(progress.step, config.eval.every_steps, config):
            metrics |= evaluate(parts, run, config)
        if metrics:
            tracker.log(progress.step, metrics)
        if due(progress.step, config.checkpoint.every_steps, config):
            saved_step = save(parts, run, config, tracker.wandb_id)
        if out_of_patience(progress, config):
            reason = "early stopping"
            break
    if saved_step != progress.step:
        save(parts, run, config, tracker.wandb_id)
    stop.raise_failure()
    return reason
