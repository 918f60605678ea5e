"""Saves beside training: copy the state at a step's end, write and commit it in a thread.

The threads of all ranks agree over a gloo group of their own, so no collective of a save meets one
of training, and none is on the device. Each rank copies what it holds, without communication. At
most one save is in flight.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist

from fitb.base.errors import FitbError, SystemFault
from fitb.config import CheckpointConfig, Config
from fitb.rundir.writer import RunDir
from fitb.training import checkpoint
from fitb.training.collectives import on_all
from fitb.training.engine import Engine
from fitb.training.stop import StopFlag
from fitb.training.zero import COLLECTIVE_LIMIT

logger = logging.getLogger(__name__)
_FIRST_S = 60.0  # before the first save, whose seconds are not known yet
_LEAVING_S = 5.0  # for a save in flight when training has failed


class Saver:
    """Saves checkpoints of an engine; collective, as every rank makes and calls it alike.

    Host memory: 12 bytes for each trained parameter, divided by the number of ranks, in one buffer
    (pinned beside a GPU), which is kept; and on rank 0 one file at a time while it is verified.

    Args:
        run: where checkpoints go.
        engine: what they are of.
        config: how often, how many are kept, and whether training goes on meanwhile.
        step: of the checkpoint that training went on from.
        stop: what a failed save sets, on every rank.
        lead_s: seconds between Slurm's warning and the end of the job; None if unknown.
    """

    def __init__(
        self,
        run: RunDir,
        engine: Engine,
        config: Config,
        step: int,
        stop: StopFlag,
        lead_s: float | None = None,
    ) -> None:
        self._run, self._engine, self._stop = run, engine, stop
        self._config, self._limits, self._steps = config.checkpoint, config.stop, config.steps
        self._interval_s, self._begun_s = first_interval_s(config.checkpoint), time.monotonic()
        self._lead_s = lead_s
        self.step = step  # of the last checkpoint that was begun; -1 if that has failed
        self._copies: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: FitbError | None = None  # of the last save
        self._stream: Any = None
        if engine.device.type == "cuda":
            self._stream = torch.cuda.Stream(engine.device)  # type: ignore[no-untyped-call]
        self._group = None
        if engine.world.size > 1:
            self._group = dist.new_group(backend="gloo", timeout=COLLECTIVE_LIMIT)

    def save(self, manifest: dict[str, Any], keep_steps: Collection[int]) -> None:
        """Copy the state and begin to write it, after an earlier save has ended.

        Args:
            manifest: what the checkpoint's manifest holds beside its files.
            keep_steps: steps whose checkpoints stay.
        """
        began = time.monotonic()
        self.wait()
        self.step, self._begun_s = manifest["step"], time.monotonic()
        self._copy()
        seconds = {"wait": self._begun_s - began, "copy": time.monotonic() - self._begun_s}
        manifest = {**manifest, "shapes": self._engine.state.shapes()}
        self._thread = threading.Thread(
            target=self._write, args=(manifest, keep_steps, seconds), name="save", daemon=True
        )
        self._thread.start()
        if not self._config.background:
            self.wait()

    def overdue(self) -> bool:
        """Return whether it is time to save by the clock of this rank; rank 0's counts.

        A save in flight for longer than `stop.hang_s` is waited for, so that the watch ends the job
        if it hangs.
        """
        if not self._engine.world.is_main:
            return False
        since_s = time.monotonic() - self._begun_s
        if self._thread and self._thread.is_alive():
            if self._limits.hang_s is not None and since_s > self._limits.hang_s:
                self.wait()
            return False
        return self._interval_s is not None and since_s >= self._interval_s

    def wait(self) -> None:
        """Wait until no save is in flight."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def close(self, exit_code: int) -> None:
        """Let a save in flight end, if its other ranks do."""
        if self._thread:
            self._thread.join(_LEAVING_S)

    @torch.no_grad()
    def _copy(self) -> None:
        parts = dict(self._engine.state.fragments())
        if not self._copies:
            sizes = [part.numel() for part in parts.values()]
            pinned = self._stream is not None
            buffer = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=pinned)
            self._copies = dict(zip(parts, buffer.split(sizes), strict=True))  # type: ignore[no-untyped-call]
        if self._stream is None:
            for key, part in parts.items():
                self._copies[key].copy_(part)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for key, part in parts.items():
                self._copies[key].copy_(part, non_blocking=True)
        self._engine.before_update = self._stream.record_event().wait

    def _write(
        self, manifest: dict[str, Any], keep_steps: Collection[int], seconds: dict[str, float]
    ) -> None:
        world = self._engine.world
        try:
            if self._stream is not None:
                self._stream.synchronize()
            folder, took = checkpoint.save(
                self._run.checkpoints,
                self._copies,
                manifest,
                fence=self._run.fence,
                world=world,
                keep_last=self._config.keep_last,
                keep_steps=keep_steps,
                group=self._group,
            )
            each = on_all(lambda: {**seconds, **took}, world, self._group)
            longest = {part: round(max(rank[part] for rank in each), 3) for part in each[0]}
            self._run.event("save", step=manifest["step"], checkpoint=folder.name, seconds=longest)
            if world.is_main:
                self._learn(manifest["step"], sum(longest.values()) - longest["wait"])
            if self._failure:  # another save has failed, and nothing is lost
                self._stop.forget(self._failure)
            self._failure = None
        except FitbError as error:
            self._failed(error)
        except BaseException as error:  # of gloo, if another rank has ended
            said = f"the save of step {manifest['step']} failed: {type(error).__name__}: {error}"
            self._failed(SystemFault(said))

    def _failed(self, error: FitbError) -> None:
        logger.error("%s", error)
        self._failure, self.step = error, -1
        self._stop.fail(error)

    def _learn(self, step: int, save_s: float) -> None:
        """Choose the interval from the seconds of a save, and warn where a stop is too short."""
        budget_min, config = self._limits.time_budget_min, self._config
        if budget_min is not None and 60 * budget_min < save_s:
            logger.warning(
                "a save took %.1f s, longer than stop.time_budget_min=%g; use"
                " --stop.time_budget_min %d",
                *(save_s, budget_min, 1 + 10 * save_s // 60),
            )
        if self._lead_s is not None and self._lead_s < save_s:
            logger.warning(
                "a save took %.1f s, and Slurm warns the job only %g s before its end; use sbatch"
                " --signal=B:USR1@%d or, with submitit, --signal_delay_s %d",
                *(save_s, self._lead_s, *[60 + round(2 * save_s)] * 2),
            )
        if config.every_steps is None and config.every_min is None:
            before, self._interval_s = self._interval_s, best_interval_s(save_s, config)
            if before == _FIRST_S and self._interval_s and step < self._steps:
                logger.info(
                    "a save took %.1f s: one every %.1f min from now, for %g failures a day",
                    *(save_s, self._interval_s / 60, config.failures_per_day),
                )


def first_interval_s(config: CheckpointConfig) -> float | None:
    """Return seconds before the first save; None to save at steps alone."""
    if config.every_min is not None:
        return 60 * config.every_min
    return None if config.every_steps is not None else _FIRST_S


def best_interval_s(save_s: float, config: CheckpointConfig) -> float | None:
    """Return Young's interval: sqrt(2 x cost of a save x time between failures); None for never.

    The cost is all seconds of a save, though training goes on during most of them: an upper bound.
    """
    if not config.failures_per_day:
        return None
    return math.sqrt(2 * save_s * 86_400 / config.failures_per_day)
