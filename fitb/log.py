"""Logging: rank 0 speaks at INFO, the others at WARNING, every line with its rank."""

from __future__ import annotations

import logging
import sys


def setup(rank: int = 0) -> None:
    """Send fitb's log lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s [rank {rank}] %(levelname)s %(message)s", "%H:%M:%S")
    )
    logger = logging.getLogger("fitb")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False
