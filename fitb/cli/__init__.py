"""Entry point of the command line: find the command, run it, return its exit code.

Every command is a row of fitb/cli/commands.py. Its modules are imported when it runs, so that
`fitb --help` starts as fast as Python.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import fitb
from fitb.base import git, log
from fitb.base.errors import CRASH, STOP, ConfigError, FitbError, nearest
from fitb.base.modes import fault_of
from fitb.base.world import without_local_rank
from fitb.cli import help
from fitb.cli.command_row import Command
from fitb.cli.commands import COMMANDS

INTERRUPTED = 130  # exit code of a command that Ctrl-C ended


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words, name = list(sys.argv[1:] if args is None else args), ""
    log.setup()
    try:
        name, *flags = without_local_rank(words, os.environ) or ["--help"]
        code = _run(name, flags)
        sys.stdout.flush()  # raises BrokenPipeError here, not at interpreter exit
        return code
    except KeyboardInterrupt:
        logging.getLogger("fitb").error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CRASH
    except (FitbError, PermissionError) as error:
        if isinstance(error, PermissionError):
            error = fault_of(error, "a file")
        logging.getLogger("fitb").error("%s", error)
        name = name or next((word for word in words if word in COMMANDS), "")
        return STOP if name == "train" and not error.restart_helps else error.exit_code


def _run(name: str, args: list[str]) -> int:
    if name in help.FLAGS:
        print(help.overview(), end="")
    elif name == "--version":
        print(_version())
    elif name == "bench" and (not args or args[0] in help.FLAGS):
        print(help.benchmarks_overview(), end="")
    else:
        from fitb.cli.execute import execute

        command, flags = _find(name, args)
        return execute(command, flags)
    return 0


def _find(name: str, args: list[str]) -> tuple[Command, list[str]]:
    """Return a command and the words after its name."""
    if name == "bench":
        name, args = f"bench {args[0]}", args[1:]
    if name not in COMMANDS:
        lists = "fitb bench --help" if name.startswith("bench ") else "fitb --help"
        near = nearest(name, [*COMMANDS, "bench"])
        raise ConfigError(f"unknown command {name!r}{near}; `{lists}` lists all")
    return COMMANDS[name], args


def _version() -> str:
    """Return the version, in a checkout with the commit."""
    commit = git.describe()
    return f"fitb {fitb.__version__}" + (f" ({commit})" if commit else "")
