"""Flags and YAML into configuration dataclasses, through jsonargparse; nobody else parses."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from fitb.config.keys import choices, hint_of, hints, type_name
from fitb.config.launcher import LauncherArguments, RawExamples
from fitb.config.schema import Config
from fitb.config.words import Pair, Words
from fitb.errors import ConfigError, FitbError, nearest

T = TypeVar("T")


def preset_names() -> list[str]:
    return resource_names("fitb.presets", ".yaml")


def resource_names(package: str, suffix: str) -> list[str]:
    """Names of the packaged files of a kind, without their suffix."""
    return sorted(path.stem for path in _folder_of(package).glob(f"*{suffix}"))


def resolve_resource(name: str, package: str, suffix: str) -> Path:
    """Return the file itself where `name` is a path, else the packaged file of that name.

    Raises: ConfigError with the nearest packaged name.
    """
    if Path(name).is_file():
        return Path(name)
    known = resource_names(package, suffix)
    if name in known:
        return _folder_of(package) / f"{name}{suffix}"
    raise ConfigError(
        f"{name!r} is neither a file nor one of {', '.join(known)}{nearest(name, known)}"
    )


def _folder_of(package: str) -> Path:
    try:
        return Path(str(resources.files(package)))
    except ModuleNotFoundError:  # a checkout that is not installed has it beside the package
        return Path(__file__).parents[2] / package.rpartition(".")[2]


# What jsonargparse says in other words.
_HELP_OF_THEIRS = {
    "help": "show this help message and exit",
    "print_config": "print what the other flags make, as YAML for --config, and exit",
    "model.teacher.help": "show the keys of a geometry and exit",
    "model.student.help": "show the keys of a geometry and exit",
    "blanks.help": "show the keys of a constraint and exit",
}


class Formatter(RawExamples, DefaultHelpFormatter):
    """jsonargparse's help, with examples as they are."""


def parser_for(kind: type[Any], prog: str, *, positional: str = "", **told: Any) -> ArgumentParser:
    """Build the parser of a configuration dataclass: its keys as dotted flags, and --config.

    Args:
        prog: the command, as a user types it.
        positional: key that plain words fill.
        told: description and epilog of the help.
    """
    lists = Words(kind, prog, positional).lists
    parser = ArgumentParser(
        prog=prog, formatter_class=Formatter, allow_abbrev=False, exit_on_error=False, **told
    )
    presets = f", or a preset: {', '.join(preset_names())}" if kind is Config else ""
    parser.add_argument("--config", action="config", help=f"YAML file of these flags{presets}")
    parser.add_class_arguments(kind, None, skip={positional} if lists else None)
    if lists:
        name, about = positional.upper(), abouts(kind)[positional]
        parser.add_argument(positional, nargs="+", type=str, metavar=name, help=about)
    for action in parser._actions:
        if action.dest == positional and not lists:
            action.help = f"{str(action.help).rstrip('.')}; may stand first without its flag"
        elif action.help == "Path to a configuration file.":
            action.help = "YAML file of these flags"
        else:
            action.help = _HELP_OF_THEIRS.get(action.dest, action.help)
    for group in parser._action_groups:
        if group.title == (kind.__doc__ or "").split("\n")[0].rstrip("."):
            group.title = "flags"
    words = f" {positional.upper()}{' ...' if lists else ''}" if positional else ""
    parser.usage = f"{prog}{words}{_required(parser, positional)} [flags]"
    return parser


def _required(parser: ArgumentParser, positional: str) -> str:
    flags = [a for a in parser._actions if a.required and a.option_strings and a.dest != positional]
    return "".join(f" {a.option_strings[0]} {a.dest.upper()}" for a in flags)


def parse(
    kind: type[T],
    prog: str,
    args: Sequence[str],
    *,
    positional: str = "",
    launcher: LauncherArguments | None = None,
) -> T:
    """Parse flags into an instance of `kind`.

    Args:
        prog: the command, as a user types it.
        positional: key that plain words fill.
        launcher: that has taken its own flags before.
    Raises: ConfigError naming the key, the value and the nearest valid key.
    """
    takes = Words(kind, prog, positional, launcher)
    if positional and not takes.lists and args and not args[0].startswith("-"):
        args = [f"--{positional}={args[0]}", *args[1:]]
    args = list(_with_presets(args) if kind is Config else args)
    pairs = takes.check(args)
    parser = parser_for(kind, prog, positional=positional)
    switches = {f"--{name}" for name, hint in hints(kind) if hint is bool}
    try:
        namespace = parser.parse_args(list(_switched(args, switches)))
        values = vars(parser.instantiate(namespace))
    except (argparse.ArgumentError, ValueError) as error:
        raise ConfigError(_explained(error, takes, pairs)) from error
    return kind(**{key.name: values[key.name] for key in fields(kind)})  # type: ignore[arg-type]


def _explained(error: Exception, takes: Words, pairs: Sequence[Pair]) -> str:
    """Say which value is wrong or missing, or what the library says."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, FitbError):  # of a section that refuses its values
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    for key, value in pairs:
        hint = hint_of(takes.kind, key.removesuffix("+"))
        if not _fits(hint, value, key.endswith("+")):
            near = nearest(str(value), choices(hint))
            inner = is_dataclass(hint) and f"its keys, such as --{key}.{fields(hint)[0].name}"
            return f"{key}={value}; expected {inner or type_name(hint)}{near}"
    if missing := takes.missing(pairs):
        return f"{', '.join(missing)} is missing; {takes.remedy}"
    return f"{' '.join(str(error).split())}; {takes.remedy}"


def _fits(hint: Any, value: Any, grows: bool) -> bool:
    """Whether a value alone can be parsed; text is that of a flag, all else that of a file."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    flag = "--value+" if grows else "--value"
    try:
        if isinstance(value, str):
            parser.parse_args([f"{flag}={value}"])
        else:
            parser.parse_object({flag.lstrip("-"): value})
    except argparse.ArgumentError:
        return False
    return True


def _switched(args: Sequence[str], switches: set[str]) -> Iterator[str]:
    """Give a switch that stands without a value the value true."""
    for word, after in zip(args, [*args[1:], ""], strict=False):
        yield f"{word}=true" if word in switches and after not in ("true", "false") else word


def _with_presets(args: Sequence[str]) -> Iterator[str]:
    """Replace the name of a preset after --config by its path."""
    previous = ""
    for argument in args:
        if previous == "--config":
            yield str(resolve_resource(argument, "fitb.presets", ".yaml"))
        elif argument.startswith("--config="):
            yield f"--config={resolve_resource(argument[9:], 'fitb.presets', '.yaml')}"
        else:
            yield argument
        previous = argument


def abouts(kind: type[Any]) -> dict[str, str]:
    """Return what the docstring of a dataclass, and those of its bases, say of each key."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        for key in docstring_parser.parse(base.__doc__ or "").params:
            found[key.arg_name] = " ".join((key.description or "").split())
    return found
