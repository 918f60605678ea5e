"""Run one command: parse its flags, call its function, print the result as text or JSON."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from fitb.base import fsio
from fitb.cli import help
from fitb.cli.command_row import Command
from fitb.cli.commands import COMMANDS
from fitb.config.launcher import LauncherArguments


def execute(command: Command, args: Sequence[str]) -> int:
    """Parse the flags of a command and run it; return its exit code.

    Args:
        command: row of the table.
        args: words after the name of the command.
    Raises: ConfigError for an invalid flag, and what the command raises.
    """
    given: tuple[Any, ...]
    if command.launcher:
        given = launcher_of(command).split(args)  # it also answers --help
        as_json = getattr(given[0], "json", False)
    elif set(args) & set(help.FLAGS):
        print(parser_of(command).format_help(), end="")
        return 0
    else:
        from fitb.config.parser import parse

        config: Any = parse(
            load(command.config), command.program, args, positional=command.positional
        )
        given, as_json = (config,), getattr(config, "json", False)
    run = load(command.run)
    if not command.render:
        return int(run(*given))
    with contextlib.redirect_stdout(sys.stderr):  # keeps libraries' output apart from the result
        result = run(*given)
    if result is None or result == {}:  # a rank other than 0
        return 0
    if as_json:
        plain = load(command.as_json)(result) if command.as_json else result
        print(fsio.to_json(plain, ensure_ascii=command.ascii))
    else:
        print(load(command.render)(result))
    return int(load(command.exit_code)(result)) if command.exit_code else 0


def launcher_of(command: Command) -> LauncherArguments:
    """Build the parser of a command's launcher arguments, with its help."""
    parser: LauncherArguments = load(command.launcher)()
    hands_to = COMMANDS[command.hands_to].program
    about = f"{help.sentence(command.about)} All other flags go to `{hands_to}`."
    parser.describe(command.program, about, help.examples(command.shown).lstrip(), hands_to)
    return parser


def parser_of(command: Command) -> Any:
    """Build the parser of a command's configuration, with its help."""
    from fitb.config.parser import parser_for

    return parser_for(
        load(command.config),
        command.program,
        positional=command.positional,
        description=help.sentence(command.about),
        epilog=help.examples(command.shown).lstrip(),
    )


def load(name: str) -> Any:
    """Import and return module:attribute."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
