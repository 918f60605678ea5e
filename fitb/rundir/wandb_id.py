"""The id of a run in Weights & Biases: one for all of its attempts."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from fitb.base import fsio
from fitb.rundir import names

logger = logging.getLogger(__name__)


def read_id(run: Path) -> str | None:
    """Return the id of a run; None where it has none, or a damaged one."""
    path = run / names.WANDB_ID
    found = path.read_text(errors="replace").strip() if path.is_file() else ""
    return found if found.isprintable() and "\ufffd" not in found and found else None


def make_id(run: Path) -> str:
    """Return the id of a run, made where it has none.

    In place of a damaged one it gets another, under which all is sent once more.
    """
    path = run / names.WANDB_ID
    if fsio.create(path):
        fsio.write_atomic(path, secrets.token_hex(4) + "\n")
    found = read_id(run)
    if found is None:
        aside = fsio.set_aside(path)
        logger.warning("%s holds no id; W&B gets this run anew, under another one", aside)
        return make_id(run)
    return found
