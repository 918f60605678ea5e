"""Names of the files of a run, below the folder that --run_dir names."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.yaml"  # as resolved when the run began
PROVENANCE = "provenance.json"  # a list: code, packages and hosts of each attempt
METRICS = "metrics.jsonl"  # a line per logged step, each step once
EVENTS = "events.jsonl"  # a line per attempt, resume, save, requeue, stop, ...
DONE = "done.json"  # how the run ended
WANDB_ID = "wandb_id"
CHECKPOINTS = "checkpoints"  # step-NNNNNNN/, `latest`, and the fence of the attempt that owns it
LATEST = "latest"  # in CHECKPOINTS: name of the newest checkpoint
MANIFEST = "manifest.json"  # of a checkpoint, written last
ATTEMPTS = "attempts"  # NNNN/ of each attempt: owner, heartbeats, `ended`
EXPORT = "export"  # the best student, as a Hugging Face folder
LOGS = "logs"

STEP = "train/step"  # key of every line of METRICS: optimizer updates done
BEST_BY = "val/loss_mlm"  # key of METRICS whose lowest value marks the best step


def checkpoint(run: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run / CHECKPOINTS / f"step-{step:07d}"


def attempt(run: Path, number: int) -> Path:
    """Return the folder of an attempt's owner and heartbeats."""
    return run / ATTEMPTS / f"{number:04d}"


def fence(run: Path, number: int) -> Path:
    """Return the folder that an attempt's fencing token becomes, see ownership.py."""
    return run / CHECKPOINTS / f".{number:04d}"


def is_run(folder: Path) -> bool:
    """Return whether a folder holds the configuration of a run."""
    return (folder / CONFIG).is_file()
