"""Logging: rank 0 speaks at INFO, the others at WARNING, every line with its rank.

On a terminal one line below the log says how far the work is, and is drawn again in its place;
elsewhere progress is a log line every few seconds, in CI every minute.
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
    """Writes log lines, and keeps the line of progress below them where there is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._shown = ""

    @property
    def is_terminal(self) -> bool:
        """Whether a line can be drawn again."""
        there = not self.stream.closed and self.stream.isatty()
        return there and os.environ.get("TERM") != "dumb"

    def emit(self, record: logging.LogRecord) -> None:
        shown = self._shown
        self._draw("")
        super().emit(record)
        self._draw(shown)

    def show(self, parts: Sequence[str]) -> None:
        """Draw the line of progress in the place of the one before; without parts take it away."""
        self.acquire()  # other threads log
        try:
            self._draw(fit(parts, self._columns()))
        finally:
            self.release()

    def _draw(self, text: str) -> None:
        if text or self._shown:
            # The cursor goes back, so that what others print does not begin in the middle.
            self.stream.write(_CLEAR + text + ("\r" if text else ""))
            self.stream.flush()
        self._shown = text

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


class Progress:
    """How far one thing is, told as often as the place wants to hear it.

    Args:
        logger: of its log lines.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger, self._last_s = logger, float("-inf")

    def tell(self, parts: Sequence[str], plain: str, last: bool = False) -> None:
        """Draw on a terminal, write a log line elsewhere; or neither, where it is too soon.

        Args:
            parts: of the line on a terminal; where it is too narrow the last ones are left out.
            plain: the log line.
            last: always a log line.
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
        """Take the line off the terminal."""
        console = _console()
        if console is not None:
            console.show([])


def fit(parts: Sequence[str], columns: int) -> str:
    """Return the first parts that a line of a terminal holds, the very first one cut if need be.

    Args:
        columns: of the terminal; its last one stays free, or some terminals begin a new line.
    """
    text = ""
    for number, part in enumerate(parts):
        longer = text + _GAP * (number > 0) + part
        if len(longer) >= columns:
            return text or part[: max(0, columns - 1)]
        text = longer
    return text


def setup(rank: int = 0) -> None:
    """Send fitb's log lines to standard error."""
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
