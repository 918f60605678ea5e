"""Where numbers go: metrics.jsonl first, then a line for people, then Weights & Biases.

metrics.jsonl is the truth: one line per logged step, each step once, also across attempts. W&B
mirrors it under one id per run (wandb_mirror.py); whatever W&B does, training goes on.
"""

from __future__ import annotations

import logging
import netrc
import os
import secrets
import time
from pathlib import Path

from fitb import fsio
from fitb.config import Config
from fitb.train.rundir import RunDir
from fitb.train.wandb_mirror import STEP, Mirror, target_of
from fitb.world import World

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 5.0


class Tracker:
    """Logs metrics of a run; does nothing on ranks other than 0."""

    def __init__(self, run: RunDir, config: Config, world: World) -> None:
        self._run, self._steps, self._world = run, config.steps, world
        self._mirror: Mirror | None = None
        self._last_line_s = 0.0
        self.wandb_id = ""
        self._logged_until = -1
        if world.is_main:
            self._handle = run.open_metrics()
            for record in fsio.read_lines(run.metrics):
                self._logged_until = max(self._logged_until, record[STEP])
            self.wandb_id = _wandb_id(run.path / "wandb_id")
            mode = wandb_mode(config.track.wandb, dict(os.environ))
            if mode != "disabled":
                target = target_of(self.wandb_id, run.name, config)
                self._mirror = Mirror(run.metrics, target, mode, run.path, self._logged_until)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step; a step that an earlier attempt logged is passed over.

        Args:
            step: optimiser updates done.
            metrics: names as in docs/design.md.
        Raises: Replaced where another attempt has taken the run over.
        """
        if not self._world.is_main:
            return
        self._show(step, metrics)
        if step <= self._logged_until:
            return
        self._run.check_owned()
        self._logged_until = step
        fsio.append_to(self._handle, self._run.metrics, {STEP: step, **metrics})
        if self._mirror:
            self._mirror.grown()

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

    def leave(self, exit_code: int) -> None:
        """Close W&B, waiting no longer than a grace period allows."""
        if self._mirror:
            self._mirror.finish(exit_code)


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
