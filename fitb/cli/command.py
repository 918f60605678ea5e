"""What the table says of a command.

Functions and classes are named as module:attribute, and imported when the command runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: words after `fitb`; launch.X is `python -m launch.X`.
        about: one line, as a list of commands shows it; no full stop.
        examples: command lines that parse.
        run: takes the configuration; where there are launcher arguments, these and all other words.
            It returns a result where there is `render`, else an exit code.
        config: class of its flags.
        positional: key of that class that plain words fill, without a flag.
        render: turns a result into text.
        as_json: turns a result into what `--json` prints; empty: it is printed as it is.
        ascii: whether the JSON escapes all other letters.
        exit_code: turns a result into an exit code; empty: 0.
        launcher: makes the parser of launcher arguments.
        hands_to: command whose flags all others are, where there are launcher arguments.
    """

    name: str
    about: str
    examples: tuple[str, ...]
    run: str
    config: str = "fitb.config:Config"
    positional: str = ""
    render: str = ""
    as_json: str = ""
    ascii: bool = True
    exit_code: str = ""
    launcher: str = ""
    hands_to: str = ""

    @property
    def launches(self) -> bool:
        """Whether it is a module of launch/."""
        return self.name.startswith("launch.")

    @property
    def program(self) -> str:
        """What a user types before the flags."""
        return f"{_modules()}{self.name}" if self.launches else f"fitb {self.name}"

    @property
    def shown(self) -> tuple[str, ...]:
        """The examples as they are typed here."""
        return tuple(line.replace("python -m ", _modules()) for line in self.examples)


def _modules() -> str:
    """How launch/ is started: in a checkout it lies beside the package, in a wheel within it."""
    installed = (Path(__file__).parents[1] / "launch").is_dir()
    return "python -m fitb." if installed else "python -m "
