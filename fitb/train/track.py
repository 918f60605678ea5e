"""Where numbers go: metrics.jsonl first, then a line for people, then Weights & Biases.

metrics.jsonl is the truth: one line per logged step, each step once, also across attempts. W&B
mirrors it under one id per run; whatever W&B does, training goes on.
"""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from fitb import fsio
from fitb.config import Config
from fitb.config_io import flatten
from fitb.corpus.remote import redacted
from fitb.train.rundir import RunDir
from fitb.world import World

logger = logging.getLogger(__name__)
STEP = "train/step"
_SECONDS_BETWEEN_LINES = 5.0
_FINISH_TIMEOUT_S = 20.0


class Tracker:
    """Logs metrics of a run; does nothing on ranks other than 0."""

    def __init__(self, run: RunDir, config: Config, world: World) -> None:
        self._path, self._steps, self._world = run.metrics, config.steps, world
        self._wandb: Any = None
        self._last_line_s = 0.0
        self.wandb_id = ""
        self._logged_until = -1
        if world.is_main:
            fsio.mend_tail(run.metrics)
            for record in fsio.read_lines(run.metrics):
                self._logged_until = max(self._logged_until, record[STEP])
            self.wandb_id = _wandb_id(run.path / "wandb_id")
            self._wandb = _start_wandb(run, config, self.wandb_id)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step; a step that an earlier attempt logged is passed over.

        Args:
            step: optimiser updates done.
            metrics: names as in docs/design.md.
        """
        if not self._world.is_main:
            return
        self._show(step, metrics)
        if step <= self._logged_until:
            return
        self._logged_until = step
        fsio.append_line(self._path, {STEP: step, **metrics})
        if self._wandb is not None:
            try:
                self._wandb.log({STEP: step, **metrics})
            except Exception as error:  # whatever it is, training goes on
                logger.warning("W&B stopped taking metrics (%s); metrics.jsonl has them", error)
                self._wandb = None

    def _show(self, step: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self._last_line_s < _SECONDS_BETWEEN_LINES and step != self._steps:
            return
        self._last_line_s = now
        shown = [f"step {step}/{self._steps}"]
        for name, text in (
            ("train/loss", "loss {:.3f}"),
            ("student/loss_mlm", "mlm {:.3f}"),
            ("student/top1", "top1 {:.1%}"),
            ("val/loss_mlm", "val mlm {:.3f}"),
            ("val/top1", "val top1 {:.1%}"),
            ("perf/tokens_per_s", "{:,.0f} tokens/s"),
        ):
            if name in metrics:
                shown.append(text.format(metrics[name]))
        if metrics.get("perf/steps_per_s"):
            left_s = (self._steps - step) / metrics["perf/steps_per_s"]
            shown.append(f"{left_s / 60:.1f} min left")
        logger.info("  ".join(shown))

    def finish(self, exit_code: int) -> None:
        """Close W&B, waiting no longer than a grace period allows."""
        if self._wandb is None:
            return
        closing = threading.Thread(target=_finish, args=(self._wandb, exit_code), daemon=True)
        closing.start()
        closing.join(_FINISH_TIMEOUT_S)
        if closing.is_alive():
            logger.warning("W&B did not close within %s s; left behind", _FINISH_TIMEOUT_S)


def _finish(wandb_run: Any, exit_code: int) -> None:
    try:
        wandb_run.finish(exit_code=exit_code)
    except Exception as error:
        logger.warning("W&B did not close: %s", error)


def _wandb_id(path: Path) -> str:
    """One id for all attempts of a run."""
    if not path.exists():
        fsio.write_atomic(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def wandb_mode(wanted: str, env: dict[str, str]) -> str:
    """Resolve `auto`: what WANDB_MODE says, else online where there is a key, else offline."""
    if wanted != "auto":
        return wanted
    if env.get("WANDB_MODE"):
        return env["WANDB_MODE"]
    try:
        has_login = netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        has_login = False
    return "online" if env.get("WANDB_API_KEY") or has_login else "offline"


def _start_wandb(run: RunDir, config: Config, run_id: str) -> Any:
    """Start W&B; where the network fails, offline; where that fails too, not at all."""
    mode = wandb_mode(config.track.wandb, dict(os.environ))
    for attempt in (mode, "offline") if mode == "online" else (mode,):
        if attempt == "disabled":
            return None
        try:
            return _init_wandb(run, config, run_id, attempt)
        except Exception as error:  # network, space, key: the run does not depend on it
            logger.warning("W&B is off in mode %s (%s); metrics.jsonl has all", attempt, error)
    return None


def _init_wandb(run: RunDir, config: Config, run_id: str, mode: str) -> Any:
    import wandb

    (run.path / "wandb").mkdir(exist_ok=True)
    started = wandb.init(
        id=run_id,
        resume="allow" if mode == "online" else None,
        mode=mode,  # type: ignore[arg-type]
        dir=str(run.path),
        project=config.track.project,
        entity=config.track.entity,
        name=config.track.name or run.name,
        config={
            key: redacted(value) if isinstance(value, str) else value
            for key, value in flatten(config).items()
        },
        settings=wandb.Settings(silent=True, init_timeout=30),
    )
    started.define_metric(STEP)
    started.define_metric("*", step_metric=STEP)
    return started
