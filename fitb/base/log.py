"""Logging: rank 0 at INFO, other ranks at WARNING, every line with its rank.

On a terminal a progress line is redrawn below the log; elsewhere progress is a log line every 5 s,
in CI every minute.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import TextIO

REDRAW_S, LINE_S, CI_LINE_S = 0.1, 5.0, 60.0
_GAP = "  "
_CLEAR = "\r\x1b[K"


class Console(logging.StreamHandler[TextIO]):
    """Log handler that keeps the progress line of a terminal below the log lines."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._shown = ""

    @property
    def is_terminal(self) -> bool:
        """Whether a line can be redrawn."""
        there = not self.stream.closed and self.stream.isatty()
        return there and os.environ.get("TERM") != "dumb"

    def emit(self, record: logging.LogRecord) -> None:
        shown = self._shown
        self._draw("")
        super().emit(record)
        self._draw(shown)

    def show(self, parts: Sequence[str]) -> None:
        """Redraw the progress line; without parts, remove it."""
        self.acquire()  # other threads log
        try:
            self._draw(fit(parts, self._columns()))
        finally:
            self.release()

    def _draw(self, text: str) -> None:
        if text or self._shown:
            # Return the cursor, so that the output of other programs starts at the left.
            self.stream.write(_CLEAR + text + ("\r" if text else ""))
            self.stream.flush()
        self._shown = text

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


class ProgressLine:
    """Rate-limited progress of one task.

    Args:
        logger: logger of its log lines.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger, self._last_s = logger, float("-inf")

    def tell(self, parts: Sequence[str], plain: str, last: bool = False) -> None:
        """Redraw the progress line, or write a log line without a terminal, if it is due.

        Args:
            parts: parts of the progress line; a narrow terminal drops the last ones.
            plain: text of the log line.
            last: whether to write a log line in any case.
        """
        console, now = _console(), time.monotonic()
        draws = console is not None and console.is_terminal
        every_s = REDRAW_S if draws else CI_LINE_S if os.environ.get("CI") else LINE_S
        if now - self._last_s < every_s and not last:
            return
        self._last_s = now
        if console is not None and draws:
            console.show([] if last else parts)
        if last or not draws:
            self._logger.info(plain)

    def end(self) -> None:
        """Remove the progress line."""
        console = _console()
        if console is not None:
            console.show([])


def fit(parts: Sequence[str], columns: int) -> str:
    """Return the first parts that fit into a terminal line; the very first may be cut.

    Args:
        parts: parts of the line.
        columns: width of the terminal; its last column stays free, because some terminals wrap.
    """
    text = ""
    for number, part in enumerate(parts):
        longer = text + _GAP * (number > 0) + part
        if len(longer) >= columns:
            return text or part[: max(0, columns - 1)]
        text = longer
    return text


def setup(rank: int = 0) -> None:
    """Send the log of fitb to standard error."""
    handler = Console(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s [rank {rank}] %(levelname)s %(message)s", "%H:%M:%S")
    )
    logger = logging.getLogger("fitb")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False


def _console() -> Console | None:
    handlers = logging.getLogger("fitb").handlers
    return next((handler for handler in handlers if isinstance(handler, Console)), None)
