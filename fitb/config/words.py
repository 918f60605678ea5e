"""Words of a command line and keys of a YAML file, checked against the fields of a dataclass.

This comes before jsonargparse, so that an error names what was meant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import yaml

from fitb.config.keys import OF_OTHERS, hint_of, names, section_of, type_name
from fitb.config.launcher import LauncherArguments
from fitb.errors import ConfigError, nearest

Pair = tuple[str, Any]  # a dotted key, with + where a list grows by the value; and the value


@dataclass(frozen=True)
class Words:
    """What a command takes.

    Args:
        kind: dataclass of its keys.
        prog: the command, as a user types it.
        positional: key that plain words fill.
        launcher: that has taken its own flags before.
    """

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
        """Whether any number of plain words may stand."""
        return get_origin(get_type_hints(self.kind).get(self.positional)) is list

    def check(self, words: Sequence[str]) -> list[Pair]:
        """Return what is given, by flags and in files, in its order.

        Raises: ConfigError for an unknown key, a key without a value and a word too many.
        """
        pairs: list[Pair] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            flag, equals, value = word.partition("=")
            key = flag.lstrip("-")
            if word == "--" or key in ("h", "help") or key.endswith(".help"):
                return pairs
            if not word.startswith("-") or word == "-":
                if not self.lists:
                    raise ConfigError(f"unexpected argument {word!r}; {self.remedy}")
                pairs.append((f"{self.positional}+", word))
            elif key == "config":
                pairs += self._file(value if equals else self._value(key, str, rest))
            elif key != "print_config":
                hint = self._hint(key)
                pairs += self._flag(key, hint, value if equals else self._value(key, hint, rest))
        return pairs

    def missing(self, pairs: Iterable[Pair]) -> list[str]:
        """Return the keys that have no default and are not given."""
        given = {key.removesuffix("+") for key, _ in pairs}
        required = [
            key.name
            for key in fields(self.kind)
            if key.default is MISSING and key.default_factory is MISSING
        ]
        return [name for name in required if name not in given]

    def _hint(self, key: str) -> Any:
        hint = hint_of(self.kind, key.removesuffix("+"))
        if hint is None:
            taken = self.launcher.names() if self.launcher else []
            raise self._unknown(key, [*names(self.kind), "config", *taken])
        return hint

    def _unknown(self, key: str, known: Iterable[str]) -> ConfigError:
        known = list(known)
        other, difference = OF_OTHERS.get(key.rpartition(".")[2].replace("-", "_"), ("", ""))
        near = f" (nearest: {other}{difference and f', {difference}'})"
        near = near if other in known else nearest(key, known)
        return ConfigError(f"unknown key {key!r}{near}; {self.remedy}")

    def _value(self, key: str, hint: Any, rest: list[str]) -> str:
        """Take the value of a flag from the words behind it; a switch needs none."""
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
        except (OSError, UnicodeDecodeError):  # jsonargparse says so
            return
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict | None):
            found = type(values).__name__
            raise ConfigError(f"{path} is a {found}; expected keys and values; {self.remedy}")
        yield from self._mapping(values or {})

    def _mapping(self, values: Mapping[Any, Any], prefix: str = "") -> Iterator[Pair]:
        """Yield the entries of a file, or of a section that is given whole."""
        for name, value in values.items():
            key = f"{prefix}{name}"
            section = section_of(self._hint(key))
            if section and isinstance(value, dict):
                yield from self._mapping(value, f"{key}.")
                continue
            if section and isinstance(value, list):
                for inner in (inner for item in value if isinstance(item, dict) for inner in item):
                    if hint_of(section, inner) is None:
                        raise self._unknown(
                            f"{key}.{inner}", (f"{key}.{each}" for each in names(section))
                        )
            yield key, value
