"""The command line of a benchmark here: its function's arguments are the flags, JSON the output."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from jsonargparse import auto_cli

from fitb.base.fsio import to_json


def print_json(bench: Callable[..., dict[str, Any]]) -> None:
    """Run it and print its row alone: libraries talk on standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        words = [word for word in sys.argv[1:] if word != "--json"]  # there is no other output
        row = auto_cli(bench, as_positional=False, args=words)
    print(to_json(row))
