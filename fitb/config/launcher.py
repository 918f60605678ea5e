"""Launcher arguments: flags of a command that passes all other flags to another command.

Imports the standard library only, because `fitb doctor` must run if libraries are missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from fitb.base.errors import ConfigError, nearest

SBATCH = "--sbatch"


class RawExamples(argparse.HelpFormatter):
    """A help formatter that wraps text but not examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return text
        return super()._fill_text(text, width, indent)


class LauncherArguments(argparse.ArgumentParser):
    """Parser of launcher arguments; the namespace that it returns holds it as `launcher`.

    Args:
        prog: the command, as a user types it.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog=prog, formatter_class=RawExamples, allow_abbrev=False)
        self.describe(prog, "", "", "fitb train")
        self.set_defaults(launcher=self)

    def describe(self, prog: str, description: str, epilog: str, hands_to: str) -> None:
        """Set the texts of the help; see argparse.ArgumentParser."""
        self.prog, self.description, self.epilog = prog, description, epilog
        self.hands_to = hands_to
        self.usage = f"{prog} [flags] [flags of `{hands_to}`]"

    def add_sbatch(self) -> None:
        """Add --sbatch, a repeatable flag for options of sbatch."""
        self.add_argument(
            SBATCH, action="append", default=[], metavar="OPTIONS", help="options of sbatch"
        )

    def split(self, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the launcher arguments, and all other words of the command line.

        Raises: ConfigError for an invalid value.
        """
        words = [word for word in args if word != "--"]
        for place in reversed(range(len(words) - 1)):
            if words[place] == SBATCH:  # argparse would take the value for a flag
                words[place : place + 2] = [f"{SBATCH}={words[place + 1]}"]
        return self.parse_known_args(words)

    def names(self) -> list[str]:
        """Return the names of the flags, without dashes."""
        return [
            flag.removeprefix("--")
            for action in self._actions
            for flag in action.option_strings
            if flag.startswith("--")
        ]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            text = (
                f"{action.dest}={value}; expected {' | '.join(known)}{nearest(str(value), known)}"
            )
            self.error(text)

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split())
        raise ConfigError(f"{text}; `{self.prog} --help` lists all flags")
