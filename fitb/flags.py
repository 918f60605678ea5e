"""Flags and YAML into configuration dataclasses, through jsonargparse; nobody else parses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from jsonargparse import ArgumentParser

from fitb.errors import ConfigError, nearest

T = TypeVar("T")


def preset_names() -> list[str]:
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("fitb.presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def resolve_resource(name: str, package: str, suffix: str) -> Path:
    """Return the file itself where `name` is a path, else the packaged file of that name.

    Raises: ConfigError with the nearest packaged name.
    """
    if Path(name).is_file():
        return Path(name)
    try:
        folder = Path(str(resources.files(package)))
    except ModuleNotFoundError:  # a checkout that is not installed has it beside the package
        folder = Path(__file__).parents[1] / package.rpartition(".")[2]
    known = sorted(path.stem for path in folder.glob(f"*{suffix}"))
    if name in known:
        return folder / f"{name}{suffix}"
    raise ConfigError(
        f"{name!r} is neither a file nor one of {', '.join(known)}{nearest(name, known)}"
    )


class Parser(ArgumentParser):
    """An argument parser whose errors are ConfigErrors that name the nearest valid key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        known = [
            option.lstrip("-")
            for action in self._actions
            for option in action.option_strings
            if not option.endswith((".help", "+"))
        ]
        text = " ".join(message.split())
        group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
        flag = re.search(r"unrecognized arguments: -*([\w.]+)", text, re.IGNORECASE)
        key = re.search(r"Option '([\w.]+)' is not accepted", text)
        if group:
            name = f"{group[1]}.{group[2]}"
        else:
            found = flag or key
            name = found[1] if found else ""
        if name:
            text = f"unknown key {name!r}{nearest(name, known)}; `{self.prog} --help` lists all"
        raise ConfigError(text) from ex


def parser_for(kind: type[Any], prog: str, positional: str | None = None) -> Parser:
    """Build the parser of a configuration dataclass: its keys as dotted flags, and --config."""
    description = (kind.__doc__ or "").split("\n")[0]
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument(
        "--config",
        action="config",
        help=f"YAML file, or a preset: {', '.join(preset_names())}",
    )
    parser.add_class_arguments(kind, None, skip={positional} if positional else None)
    if positional:
        parser.add_argument(positional, nargs="+", type=str)
    return parser


def parse(kind: type[T], prog: str, args: Sequence[str], positional: str | None = None) -> T:
    """Parse flags into an instance of `kind`.

    Args:
        positional: names a field of plain words, or of one, which may stand first without its flag.
    Raises: ConfigError naming the key, the value and the nearest valid key.
    """
    keys = fields(kind)  # type: ignore[arg-type]
    if positional and any(key.name == positional and key.type == "str" for key in keys):
        if args and not args[0].startswith("-"):
            args = [f"--{positional}={args[0]}", *args[1:]]
        positional = None
    parser = parser_for(kind, prog, positional)
    switches = set(_switches(kind))
    namespace = parser.parse_args(list(_with_presets(args, switches)))
    try:
        values = vars(parser.instantiate(namespace))
    except ValueError as error:  # how jsonargparse passes on what a nested section refuses
        raise ConfigError(" ".join(str(error).split())) from error
    return kind(**{key.name: values[key.name] for key in keys})


def _switches(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield the flags of a dataclass, nested ones too, that are on or off."""
    for name, key in get_type_hints(kind).items():
        if key is bool:
            yield f"--{prefix}{name}"
        elif is_dataclass(key):
            yield from _switches(key, f"{prefix}{name}.")  # type: ignore[arg-type]


def _with_presets(args: Sequence[str], switches: set[str]) -> Iterator[str]:
    """Replace the name of a preset after --config by its path, and a bare switch by =true."""
    previous = ""
    for argument in args:
        if previous == "--config":
            yield str(resolve_resource(argument, "fitb.presets", ".yaml"))
        elif argument.startswith("--config="):
            yield f"--config={resolve_resource(argument[9:], 'fitb.presets', '.yaml')}"
        else:
            yield f"{argument}=true" if argument in switches else argument
        previous = argument
