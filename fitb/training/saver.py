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
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.distributed as dist

from fitb.base.errors import FitbError, SystemFault
from fitb.config import CheckpointConfig, Config
from fitb.rundir.writer import RunDir
from fitb.training import checkpoint
from fitb.training.collectives import on_all
from fitb.training.engine import Engine

logger = logging.getLogger(__name__)
_FIRST_S = 60.0  # before the first save, whose seconds are not known yet
_LEAVING_S = 20.0  # for a save in flight when training has failed


class Saver:
    """Saves checkpoints of an engine; collective, as every rank makes and calls it alike.

    Host memory: 12 bytes for each trained parameter, divided by the number of ranks, for the copy
    (pinned beside a GPU), which is kept, and as much again while it is written.

    Args:
        run: where checkpoints go.
        engine: what they are of.
        config: how often, how many are kept, and whether training goes on meanwhile.
        step: of the checkpoint that training went on from.
        fail: called, in another thread, with the error of a save, which every rank gets.
    """

    def __init__(
        self,
        run: RunDir,
        engine: Engine,
        config: Config,
        step: int,
        fail: Callable[[FitbError], None],
    ) -> None:
        self._run, self._engine, self._config, self._fail = run, engine, config.checkpoint, fail
        self._time_budget_min = config.stop.time_budget_min
        self._interval_s, self._begun_s = first_interval_s(config.checkpoint), time.monotonic()
        self.step = step  # of the last checkpoint that was begun
        self._copies: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._stream: Any = None
        if engine.device.type == "cuda":
            self._stream = torch.cuda.Stream(engine.device)  # type: ignore[no-untyped-call]
        self._group = dist.new_group(backend="gloo") if engine.world.size > 1 else None

    def save(self, manifest: dict[str, Any], keep_steps: Collection[int]) -> None:
        """Copy the state and begin to write it, after an earlier save has ended.

        Args:
            manifest: what the checkpoint's manifest holds beside its files.
            keep_steps: steps whose checkpoints stay.
        """
        began = self._begun_s = time.monotonic()
        self.step = manifest["step"]
        self.wait()
        waited = time.monotonic()
        self._copy()
        seconds = {"wait": waited - began, "copy": time.monotonic() - waited}
        manifest = {**manifest, "shapes": self._engine.state.shapes()}
        self._thread = threading.Thread(
            target=self._write, args=(manifest, keep_steps, seconds), name="save", daemon=True
        )
        self._thread.start()
        if not self._config.background:
            self.wait()

    def overdue(self) -> bool:
        """Return whether it is time to save by the clock of this rank; rank 0's counts."""
        main, interval_s = self._engine.world.is_main, self._interval_s
        return main and interval_s is not None and time.monotonic() - self._begun_s >= interval_s

    def wait(self) -> None:
        """Wait until no save is in flight."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def close(self, exit_code: int) -> None:
        """Let a save in flight end, if its other ranks do."""
        if self._thread:
            self._thread.join(_LEAVING_S)

    def _copy(self) -> None:
        if self._stream is None:
            for key, part in self._engine.state.fragments():
                self._copy_of(key, part).copy_(part)
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for key, part in self._engine.state.fragments():
                self._copy_of(key, part).copy_(part, non_blocking=True)
        self._engine.before_update = self._stream.record_event().wait

    def _copy_of(self, key: str, part: torch.Tensor) -> torch.Tensor:
        if key not in self._copies:
            self._copies[key] = torch.empty_like(
                part, device="cpu", pin_memory=self._stream is not None
            )
        return self._copies[key]

    def _write(
        self, manifest: dict[str, Any], keep_steps: Collection[int], seconds: dict[str, float]
    ) -> None:
        try:
            if self._stream is not None:
                self._stream.synchronize()
            folder, took = checkpoint.save(
                self._run.checkpoints,
                self._copies,
                manifest,
                fence=self._run.fence,
                world=self._engine.world,
                keep_last=self._config.keep_last,
                keep_steps=keep_steps,
                group=self._group,
            )
            each = on_all(lambda: {**seconds, **took}, self._engine.world, self._group)
            longest = {part: round(max(rank[part] for rank in each), 3) for part in each[0]}
            self._run.event("save", step=manifest["step"], checkpoint=folder.name, seconds=longest)
            if self._engine.world.is_main:
                self._learn(sum(longest.values()))
        except FitbError as error:
            self._fail(error)
        except BaseException as error:  # of gloo, if another rank has ended
            self._fail(SystemFault(f"the save of step {manifest['step']} failed: {error!r}"))

    def _learn(self, save_s: float) -> None:
        """Choose the interval from the seconds of a save, and warn where a stop is too short."""
        budget_min, config = self._time_budget_min, self._config
        if budget_min is not None and 60 * budget_min < save_s:
            logger.warning(
                "a save took %.1f s, longer than stop.time_budget_min=%g: an attempt saves"
                " longer than it trains; use --stop.time_budget_min %d",
                save_s,
                budget_min,
                1 + 10 * save_s // 60,
            )
        if config.every_steps is None and config.every_min is None:
            before, self._interval_s = self._interval_s, best_interval_s(save_s, config)
            if before == _FIRST_S and self._interval_s:
                logger.info(
                    "a save took %.1f s: one every %.1f min from now, for %g failures a day",
                    save_s,
                    self._interval_s / 60,
                    config.failures_per_day,
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
