"""The Weights & Biases id of a run, one for all of its attempts."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from fitb.base import fsio
from fitb.rundir import names

logger = logging.getLogger(__name__)


def read_id(run: Path) -> str | None:
    """Return the id of a run; None if it has none or a damaged one."""
    path = run / names.WANDB_ID
    found = path.read_text(errors="replace").strip() if path.is_file() else ""
    return found if found.isprintable() and "\ufffd" not in found and found else None


def make_id(run: Path) -> str:
    """Return the id of a run, creating it if needed.

    A damaged id is replaced by a new one, under which all metrics are sent again.
    """
    path = run / names.WANDB_ID
    if fsio.create(path):
        fsio.write_atomic(path, secrets.token_hex(4) + "\n")
    found = read_id(run)
    if found is None:
        aside = fsio.set_aside(path)
        logger.warning("%s holds no id; this run is sent to W&B again under a new one", aside)
        return make_id(run)
    return found
