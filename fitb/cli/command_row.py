"""A row of the table of commands.

Functions and classes are strings of the form module:attribute, imported when the command runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: words after `fitb`; launch.X is `python -m launch.X`.
        about: one-line description without a full stop.
        examples: command lines that parse.
        run: function of the configuration, or of the launcher arguments and all other words; it
            returns a result if there is `render`, else an exit code.
        config: configuration class of its flags.
        positional: key of that class that positional arguments set.
        render: function from a result to text.
        as_json: function from a result to the value that `--json` prints; empty for the result.
        ascii: whether the JSON escapes non-ASCII characters.
        exit_code: function from a result to an exit code; empty for 0.
        launcher: function that builds the parser of launcher arguments; empty for none.
        hands_to: command that gets all flags that are no launcher arguments.
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
        """The command line before the flags."""
        return f"{_modules()}{self.name}" if self.launches else f"fitb {self.name}"

    @property
    def shown(self) -> tuple[str, ...]:
        """The examples, with the module names of this installation."""
        return tuple(line.replace("python -m ", _modules()) for line in self.examples)


def _modules() -> str:
    """Return the prefix of launch/ modules: next to the package in a checkout, inside a wheel."""
    installed = (Path(__file__).parents[1] / "launch").is_dir()
    return "python -m fitb." if installed else "python -m "
