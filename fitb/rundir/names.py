"""Names of the files and folders of a run, relative to --run_dir."""

from __future__ import annotations

from pathlib import Path

CONFIG = "config.yaml"  # resolved configuration of the first attempt, or as the end was moved
PROVENANCE = "provenance.json"  # a list: code, packages and hosts of each attempt
METRICS = "metrics.jsonl"  # one line per logged step, each step once
EVENTS = "events.jsonl"  # one line per attempt, resume, save, restart, stop, ...
DONE = "done.json"  # how the run ended
WANDB_ID = "wandb_id"
CHECKPOINTS = "checkpoints"  # step-NNNNNNN/, `latest`, and the fence of the owning attempt
LATEST = "latest"  # in CHECKPOINTS: name of the newest checkpoint
MANIFEST = "manifest.json"  # in a checkpoint, written last
ATTEMPTS = "attempts"  # NNNN/ of each attempt: owner, heartbeats, `ended`
HEARTBEATS = "heartbeats.json"  # in an attempt's folder: the last ones of all its ranks, by rank
EXPORT = "export"  # the best student, as a Hugging Face folder
LOGS = "logs"
PREFLIGHT = "preflight"  # JOB.RESTART.START/HOST.json: results of the preflight

STEP = "train/step"  # key of every line of METRICS: optimiser updates done
BEST_BY = "val/loss_mlm"  # key of METRICS whose lowest value marks the best step


def done_before(number: int) -> str:
    """Return the name of an earlier end's DONE, from 1, of a run that went on."""
    return f"done.{number}.json"


def checkpoint_name(step: int) -> str:
    """Return the name of a step's checkpoint in CHECKPOINTS."""
    return f"step-{step:07d}"


def checkpoint(run: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run / CHECKPOINTS / checkpoint_name(step)


def attempt(run: Path, number: int) -> Path:
    """Return the folder with an attempt's owner and heartbeats."""
    return run / ATTEMPTS / f"{number:04d}"


def fence(run: Path, number: int) -> Path:
    """Return the folder that an attempt's fencing token becomes, see ownership.py."""
    return run / CHECKPOINTS / f".{number:04d}"


def heartbeat(rank: int) -> str:
    """Return the name of a rank's heartbeat in the folder of its attempt."""
    return f"rank-{rank:05d}.json"


def hang_report(rank: int) -> str:
    """Return the name of the watchdog's report on a rank, in the folder of its attempt."""
    return f"words-rank-{rank:05d}.txt"


def is_run(folder: Path) -> bool:
    """Return whether a folder holds the configuration of a run."""
    return (folder / CONFIG).is_file()
