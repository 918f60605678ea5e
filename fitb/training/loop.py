"""The training loop: read a batch, agree whether to stop, update, log, validate, checkpoint.

Start reading here. Each step updates the student on one global batch (engine.py). The state of a
run is the weights, Adam's moments, the loss scale, the step and the best validation loss; data
order, masks, dropout and learning rate are pure functions of the step, so no resume needs more.
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
from fitb.training import milestones
from fitb.training.liveness import Watch, Watchdog
from fitb.training.metric_log import Tracker
from fitb.training.setup import Parts, build, open_run
from fitb.training.step_metrics import Meter
from fitb.training.stop import StopFlag
from fitb.training.zero import leave_distributed, start_distributed

logger = logging.getLogger(__name__)


def train(config: Config, on_end: Callable[[int], None] | None = None) -> int:
    """Start or resume a run; return its exit code, the same on every rank.

    Args:
        on_end: called with the exit code if the watch has to end this process.
    """
    world = World.from_env(os.environ)
    log.setup(world.rank)
    watchdog = Watchdog(config.stop.hang_s)
    stop = StopFlag(config.stop.time_budget_min).install()
    run = watch = tracker = parts = step = None
    code, reason = CRASH, "an unexpected exception; see the log"
    try:
        device = start_distributed(config, world)
        run, config = open_run(config, world, device)
        watch = Watch(run, world, config.stop.hang_s, watchdog, on_end)
        parts = build(config, run, world, device, stop)  # loads the newest checkpoint
        tracker = Tracker(run, config, world)
        milestones.catch_up(parts, run, config, stop, tracker.log)
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
        for part in (parts and parts.saver, watch, tracker, run, watchdog):
            if part:
                part.close(code)
    if code in (FINISHED, RESUME):
        leave_distributed()
    if watch:
        watch.outlive_main()
    return code


def _train(
    parts: Parts, config: Config, run: RunDir, tracker: Tracker, watch: Watch, stop: StopFlag
) -> str:
    """Train until the run is finished or must stop, checkpoint, and return the reason."""
    engine, progress, meter = parts.engine, parts.progress, Meter(parts, run, config)
    if milestones.out_of_patience(progress, config):  # a run that stopped early was started again
        return "early stopping"
    reason = "all steps done"
    batches = parts.stream.iter_from(progress.step, config.steps, stop.requested)
    for step, batch in stop.guard(batches):
        # One all-reduce sums loss denominators, stop flags and whether it is time to save.
        stopped, counts, saving = stop.agree(engine.counts(batch), parts.saver.overdue())
        if stopped:
            reason = stopped
            break
        assert batch is not None  # a failed read sets the stop flag
        result = engine.train_step(step, batch, counts)
        progress.step = step + 1
        watch.moved(progress.step)
        metrics = meter.read(progress.step, result)  # empty unless this step is logged
        if milestones.due(progress.step, config.eval.every_steps, config):
            metrics = milestones.evaluate(parts, run, config, stop, metrics)
        tracker.log(progress.step, metrics)
        if saving or milestones.save_due(progress, config):
            milestones.save(parts, run, config, tracker.wandb_id)
        if milestones.out_of_patience(progress, config):
            reason = "early stopping"
            break
    milestones.save_last(parts, run, config, tracker.wandb_id)
    reason = reason if progress.pending is None else stop.reason  # a validation was left
    stop.raise_failure()
    return reason
