"""The line of progress on a real pseudo-terminal, and lines of a log elsewhere."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import termios
import threading
from types import SimpleNamespace

import pytest

from fitb.base import log

logger = logging.getLogger("fitb.test")


def on_screen(written, columns):
    """What a terminal shows after these characters; written apart from what draws them."""
    rows, x = [[]], 0
    for token in re.findall(r"\x1b\[K|[^\x1b]", written):
        row = rows[-1]
        if token == "\r":
            x = 0
        elif token == "\n":
            rows.append([])
        elif token == "\x1b[K":
            del row[x:]
        else:
            assert x < columns, "a line is too long"
            row[x : x + 1] = [token]
            x += 1
    return ["".join(row) for row in rows]


class Terminal:
    """A pseudo-terminal as standard error, read by a thread: the buffer of one is small."""

    def __init__(self, columns):
        self._master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w")
        self.resize(columns)
        self._written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        while not self._written.endswith(b"\x04"):
            self._written += os.read(self._master, 4096)

    def resize(self, columns):
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self.file.fileno(), termios.TIOCSWINSZ, size)

    def screen(self):
        """Everything written until now, as it is seen; once."""
        self.close()
        return on_screen(self._written[:-1].decode(), 200)

    def close(self):
        if not self.file.closed:
            self.file.write("\x04")
            self.file.flush()
            self._reader.join()
            self.file.close()
            os.close(self._master)


@pytest.fixture
def terminal(monkeypatch):
    made = Terminal(60)
    monkeypatch.setattr("sys.stderr", made.file)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(log, "REDRAW_S", 0.0)
    log.setup()
    yield made
    made.close()


def texts(lines):
    """Log lines without their time."""
    return [re.sub(r"^\d\d:\d\d:\d\d \[rank 0\] ", "", line) for line in lines]


def test_line_is_drawn_in_its_place_and_log_lines_stand_whole_above_it(terminal):
    progress = log.ProgressLine(logger)
    progress.tell(["step 1000/2000", "50%"], "plain")
    logger.info("a checkpoint")
    progress.tell(["step 2/3", "66%"], "plain")
    logger.warning("a warning that is longer than the line of progress was")
    progress.tell(["step 3/3"], "plain")
    assert texts(terminal.screen()) == [
        "INFO a checkpoint",
        "WARNING a warning that is longer than the line of progress was",
        "step 3/3",
    ]


def test_last_step_is_a_line_of_the_log_and_the_end_leaves_nothing_below_it(terminal):
    progress = log.ProgressLine(logger)
    progress.tell(["step 1/2"], "step 1/2  plain")
    progress.tell(["step 2/2"], "step 2/2  plain", last=True)
    logger.info("done")
    progress.tell(["more"], "plain")
    progress.end()
    assert texts(terminal.screen()) == ["INFO step 2/2  plain", "INFO done", ""]


@pytest.mark.parametrize(
    ("columns", "line"),
    [(80, "one  two  three"), (16, "one  two  three"), (15, "one  two"), (5, "one"), (3, "on")],
)
def test_line_holds_the_first_parts_that_fit_with_a_column_to_spare(terminal, columns, line):
    progress = log.ProgressLine(logger)
    for width in (60, columns):
        terminal.resize(width)
        progress.tell(["one", "two", "three"], "plain")
    assert terminal.screen() == [line]


def test_threads_that_log_never_break_the_line(terminal):
    said = "a log line that is longer than the line of progress"
    threads = [
        threading.Thread(target=lambda: [logger.info(said) for _ in range(50)]) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    progress = log.ProgressLine(logger)
    for step in range(100):
        progress.tell([f"step {step}/100"], "plain")
    for thread in threads:
        thread.join()
    lines = terminal.screen()
    assert texts(lines[:-1]) == [f"INFO {said}"] * 100
    assert lines[-1] == "step 99/100"


@pytest.mark.parametrize(("environment", "seconds"), [({}, 5), ({"CI": "true"}, 60)])
def test_log_has_a_line_every_few_seconds_in_ci_every_minute_and_the_last(
    monkeypatch, environment, seconds
):
    monkeypatch.delenv("CI", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream, now = io.StringIO(), [100.0]
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: now[0]))
    log.setup()
    progress = log.ProgressLine(logger)
    for step in range(1, 202):
        progress.tell(["drawn"], f"step {step}", last=step == 201)
        now[0] += 1.0
    lines = [int(line.split()[-1]) for line in stream.getvalue().splitlines()]
    assert lines == [*range(1, 201, seconds), 201]
    assert "\r" not in stream.getvalue() and "drawn" not in stream.getvalue()


def test_terminal_that_cannot_go_back_gets_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    log.ProgressLine(logger).tell(["drawn"], "plain")
    assert texts(terminal.screen()) == ["INFO plain", ""]


def test_progress_after_standard_error_was_closed_is_nothing(monkeypatch):
    """It raised, and a preparation whose caller had closed the stream ended with a traceback."""
    gone = io.StringIO()
    monkeypatch.setattr(logging, "raiseExceptions", False)  # or logging itself complains
    monkeypatch.setattr("sys.stderr", gone)
    log.setup()
    gone.close()
    progress = log.ProgressLine(logger)
    progress.tell(["step 1/2"], "step 1/2", last=True)
    progress.end()
