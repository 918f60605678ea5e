"""Flags of a command that hands all others on to another command; needs nothing but Python."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from fitb.errors import ConfigError, nearest
from fitb.help import PAGES, examples

SBATCH = "--sbatch"


class RawExamples(argparse.HelpFormatter):
    """A formatter that wraps text, but not examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return text
        return super()._fill_text(text, width, indent)


class FrontParser(argparse.ArgumentParser):
    """A parser whose errors are ConfigErrors and whose words come from its page in fitb.help."""

    def __init__(self, prog: str) -> None:
        page = PAGES.get(prog)
        told: dict[str, Any] = {}
        if page:
            told = {
                "usage": f"{prog} [flags] [flags of `{page.hands_to}`]",
                "description": f"{sentence(page.about)} Every other flag is one of"
                f" `{page.hands_to}`.",
                "epilog": examples(page.examples).lstrip(),
            }
        super().__init__(prog=prog, formatter_class=RawExamples, allow_abbrev=False, **told)

    def add_sbatch(self) -> None:
        """Add the flag that takes options of sbatch; it may be given several times."""
        self.add_argument(
            SBATCH, action="append", default=[], metavar="OPTIONS", help="options of sbatch"
        )

    def split(self, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the values of the flags here, and all other words.

        Raises: ConfigError
        """
        words = [word for word in args if word != "--"]
        for place in reversed(range(len(words) - 1)):
            if words[place] == SBATCH:  # argparse takes a value with a dash for a flag
                words[place : place + 2] = [f"{SBATCH}={words[place + 1]}"]
        return self.parse_known_args(words)

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split())
        found = re.fullmatch(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", text)
        if found:
            known = re.findall(r"\w+", found[3])
            near = nearest(found[2], known)
            text = f"{found[1].lstrip('-')}={found[2]}; expected {' | '.join(known)}{near}"
        raise ConfigError(f"{text}; `{self.prog} --help` lists all flags")


def sentence(about: str) -> str:
    """The line of a page with a capital and a full stop."""
    return f"{about[0].upper()}{about[1:]}."


def load(name: str) -> Any:
    """Return what module:attribute names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a parser without their dashes, those that only help apart."""
    return [
        flag.lstrip("-")
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for flag in action.option_strings
        if not flag.endswith((".help", "+"))
    ]
