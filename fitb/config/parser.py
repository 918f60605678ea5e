"""Parse flags and YAML files into configuration dataclasses, with jsonargparse."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from fitb.base.errors import ConfigError, FitbError, nearest
from fitb.config.keys import OF_OTHERS, choices, hint_of, hints, section_of, type_name
from fitb.config.launcher import LauncherArguments, RawExamples
from fitb.config.schema import DROPPED, Config

T = TypeVar("T")
Pair = tuple[str, Any]  # a dotted key and its value; a trailing + appends to a list


def preset_names() -> list[str]:
    """Return the names of the packaged presets."""
    return resource_names("fitb.presets", ".yaml")


def resource_names(package: str, suffix: str) -> list[str]:
    """Return the names of the files of a package with this suffix, without the suffix."""
    return sorted(path.stem for path in _folder_of(package).glob(f"*{suffix}"))


def resolve_resource(name: str, package: str, suffix: str) -> Path:
    """Return `name` if it is an existing file, else the packaged file of that name.

    Args:
        name: path, or name of a packaged file.
        package: package of the files, such as fitb.presets.
        suffix: suffix of the files.
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
    except ModuleNotFoundError:  # not installed: a checkout has it next to the package
        return Path(__file__).parents[2] / package.rpartition(".")[2]


# Help texts that replace jsonargparse's.
_HELP_OF_THEIRS = {
    "help": "show this help message and exit",
    "print_config": "print the resulting configuration as YAML for --config, and exit",
    "model.teacher.help": "show the keys of a geometry and exit",
    "model.student.help": "show the keys of a geometry and exit",
    "blanks.help": "show the keys of a constraint and exit",
}


class Formatter(RawExamples, DefaultHelpFormatter):
    """jsonargparse's help formatter, without wrapping of examples."""


def parser_for(kind: type[Any], prog: str, *, positional: str = "", **told: Any) -> ArgumentParser:
    """Build the parser of a configuration dataclass: its keys as dotted flags, and --config.

    Args:
        kind: the dataclass.
        prog: the command, as a user types it.
        positional: key that positional arguments set.
        told: description and epilog of the help.
    """
    lists = _Command(kind, prog, positional).lists
    parser = ArgumentParser(
        prog=prog, formatter_class=Formatter, allow_abbrev=False, exit_on_error=False, **told
    )
    presets = f", or a preset: {', '.join(preset_names())}" if kind is Config else ""
    parser.add_argument("--config", action="config", help=f"YAML file of these flags{presets}")
    parser.add_class_arguments(kind, None, skip={positional} if lists else None)
    for key in _dropped(kind):
        parser.add_argument(f"--{key}", help=argparse.SUPPRESS)
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


def _dropped(kind: type[Any]) -> tuple[str, ...]:
    return DROPPED if kind is Config else ()


def _required(parser: ArgumentParser, positional: str) -> str:
    flags = [a for a in parser._actions if a.required and a.option_strings and a.dest != positional]
    return "".join(f" {a.option_strings[0]} {a.dest.upper()}" for a in flags)


@dataclass(frozen=True)
class _Command:
    """Checks the command line of a command against the fields of its dataclass; see `parse`."""

    kind: type[Any]
    prog: str
    positional: str = ""
    launcher: LauncherArguments | None = None

    @property
    def remedy(self) -> str:
        if self.launcher:
            return f"`{self.prog} --help` and `{self.launcher.hands_to} --help` list all flags"
        return f"`{self.prog} --help` lists all flags"

    @property
    def lists(self) -> bool:
        """Whether several positional arguments are allowed."""
        return get_origin(get_type_hints(self.kind).get(self.positional)) is list

    def read(self, words: Sequence[str]) -> tuple[list[str], list[Pair]]:
        """Return the words for jsonargparse, and all pairs of key and value in flags and files.

        Raises: ConfigError for an unknown key, a missing value or an unexpected argument.
        """
        flags: list[str] = []
        plain: list[str] = []
        pairs: list[Pair] = []
        rest = list(words)
        if self.positional and not self.lists and rest and not rest[0].startswith("-"):
            rest[0] = f"--{self.positional}={rest[0]}"
        while rest:
            word = rest.pop(0)
            flag, equals, value = word.partition("=")
            key = flag.removeprefix("--")
            if word == "--":
                plain, rest = plain + rest, []
            elif not word.startswith("-") or word == "-":
                plain.append(word)
            elif key in ("-h", "help", "print_config") or key.endswith(".help"):
                flags.append(word)
            else:
                hint = str if key == "config" else self._hint(key)
                value = value if equals else self._value(key, hint, rest)
                if key in _dropped(self.kind):
                    continue
                if key == "config" and self.kind is Config:
                    value = str(resolve_resource(value, "fitb.presets", ".yaml"))
                flags.append(f"{flag}={value}")
                pairs += self._file(value) if key == "config" else self._flag(key, hint, value)
        if plain and not self.lists:
            raise ConfigError(f"unexpected argument {plain[0]!r}; {self.remedy}")
        if plain:
            return [*flags, "--", *plain], [*pairs, (self.positional, plain)]
        return flags, pairs

    def missing(self, pairs: Iterable[Pair]) -> list[str]:
        """Return the required keys that are not given."""
        given = {key.removesuffix("+") for key, _ in pairs}
        required = [
            key.name
            for key in fields(self.kind)
            if key.default is MISSING and key.default_factory is MISSING
        ]
        required += [self.positional] if self.lists else []
        return [name for name in required if name not in given]

    def _hint(self, key: str) -> Any:
        hint = hint_of(self.kind, key.removesuffix("+"))
        if key in _dropped(self.kind):
            return bool
        if hint is None:
            taken = self.launcher.names() if self.launcher else []
            raise self._unknown(key, [*dict(hints(self.kind)), "config", *taken])
        return hint

    def _unknown(self, key: str, known: Iterable[str]) -> ConfigError:
        known = list(known)
        other, difference = OF_OTHERS.get(key.rpartition(".")[2].replace("-", "_"), ("", ""))
        near = f" (nearest: {other}{difference and f', {difference}'})"
        near = near if other in known else nearest(key, known)
        return ConfigError(f"unknown key {key!r}{near}; {self.remedy}")

    def _value(self, key: str, hint: Any, rest: list[str]) -> str:
        """Take the value of a flag from the next word; a boolean flag needs none."""
        if hint is bool and rest[:1] not in (["true"], ["false"]):
            return "true"
        if not rest or rest[0].startswith("--"):
            raise ConfigError(f"--{key} has no value; expected {type_name(hint)}; {self.remedy}")
        return rest.pop(0)

    def _flag(self, key: str, hint: Any, text: str) -> Iterator[Pair]:
        value: Any = text
        if section_of(hint):
            with contextlib.suppress(yaml.YAMLError):
                value = yaml.safe_load(text)
        yield from self._mapping({key: value}) if isinstance(value, (dict, list)) else [(key, text)]

    def _file(self, path: str) -> Iterator[Pair]:
        try:
            values = yaml.safe_load(Path(path).read_text())
        except (OSError, UnicodeDecodeError):  # jsonargparse reports it
            return
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict | None):
            found = type(values).__name__
            raise ConfigError(f"{path} is a {found}; expected keys and values; {self.remedy}")
        yield from self._mapping(values or {})

    def _mapping(self, values: Mapping[Any, Any], prefix: str = "") -> Iterator[Pair]:
        """Yield the entries of a file, or of a section given as one value."""
        for name, value in values.items():
            key = f"{prefix}{name}"
            section = section_of(self._hint(key))
            if key in _dropped(self.kind):
                continue
            if section and isinstance(value, dict):
                yield from self._mapping(value, f"{key}.")
                continue
            if section and isinstance(value, list):
                for inner in (inner for item in value if isinstance(item, dict) for inner in item):
                    if hint_of(section, inner) is None:
                        raise self._unknown(
                            f"{key}.{inner}", (f"{key}.{each}" for each in dict(hints(section)))
                        )
            yield key, value


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
        kind: configuration dataclass.
        prog: the command, as a user types it.
        args: words after the command.
        positional: key that positional arguments set.
        launcher: parser that took its own flags before; None without launcher arguments.
    Raises: ConfigError naming the key, the value and the nearest valid key.
    """
    command = _Command(kind, prog, positional, launcher)
    words, pairs = command.read(args)
    parser = parser_for(kind, prog, positional=positional)
    try:
        parsed = parser.parse_args(words)
        for key in _dropped(kind):
            parsed.pop(key, None)
        values = vars(parser.instantiate(parsed))
    except (argparse.ArgumentError, ValueError) as error:
        raise ConfigError(_explained(error, command, pairs)) from error
    return kind(**{key.name: values[key.name] for key in fields(kind)})  # type: ignore[arg-type]


def _explained(error: Exception, command: _Command, pairs: Sequence[Pair]) -> str:
    """Return which value is wrong or missing, else the message of jsonargparse."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, FitbError):  # raised by the checks of a section
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    for key, value in pairs:
        hint = hint_of(command.kind, key.removesuffix("+"))
        if not _fits(hint, value, key.endswith("+")):
            near = nearest(str(value), choices(hint))
            inner = is_dataclass(hint) and f"its keys, such as --{key}.{fields(hint)[0].name}"
            return f"{key}={value}; expected {inner or type_name(hint)}{near}"
    if missing := command.missing(pairs):
        return f"{', '.join(missing)} is missing; {command.remedy}"
    return f"{' '.join(str(error).split())}; {command.remedy}"


def _fits(hint: Any, value: Any, grows: bool) -> bool:
    """Whether a value parses as this type; strings are from flags, other values from files."""
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


def abouts(kind: type[Any]) -> dict[str, str]:
    """Return the description of each key from the docstrings of a dataclass and its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        for key in docstring_parser.parse(base.__doc__ or "").params:
            found[key.arg_name] = " ".join((key.description or "").split())
    return found
