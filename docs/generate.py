"""Write docs/cli.md and docs/configuration.md from the code: python docs/generate.py

Nothing here needs torch. A test fails where the pages and the code differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fitb.cli.command_row import Command  # noqa: E402
from fitb.cli.commands import COMMANDS  # noqa: E402
from fitb.cli.execute import launcher_of, load  # noqa: E402
from fitb.cli.help import sentence  # noqa: E402
from fitb.config import Config, Geometry  # noqa: E402
from fitb.config.keys import type_name  # noqa: E402
from fitb.config.parser import abouts, preset_names, resource_names  # noqa: E402
from fitb.config.yaml import MAY_CHANGE, flatten  # noqa: E402

_HEAD = ["flag", "type", "default", "meaning"]
MADE = "<!-- Made by `python docs/generate.py` from the code: change that, not this page. -->\n\n"
CLI_HEAD = """# Every command

`fitb --help` lists the commands, `fitb COMMAND --help` the flags of one. Flags are dotted keys;
`--config` takes a YAML file of the same keys, and flags after it win. A key that is on or off needs
no value (`--json`), a list is JSON (`--lengths '[128, 512]'`) or grows by one
(`--files+=mine.txt`), `null` is nothing. An unknown key is an error that names the nearest.
`fitb completion` writes the script with which a shell completes all of them.

"""
CONFIGURATION_HEAD = """# Every key of a run

One definition (`fitb/config/schema.py`, `recipe.py`) is the YAML file of `--config`, the flags of
`fitb train`, and the `config.yaml` that a run keeps. A file holds sections, a flag is the dotted
key:

    fitb train --config tinybert4 --run_dir runs/tb4 --optim.lr 1e-4 --data.shards data/shards

The keys marked *free* may differ when a run goes on: they say how it is executed, where, and for
how long, not what it computes but to rounding. Any other that differs is refused, and named.

"""


def pages() -> dict[Path, str]:
    """Return the text of each generated page by its path."""
    return {
        ROOT / "docs" / "cli.md": MADE + CLI_HEAD + "\n".join(_cli()),
        ROOT / "docs" / "configuration.md": MADE + CONFIGURATION_HEAD + "\n".join(_configuration()),
    }


def _cli() -> Iterator[str]:
    rows = COMMANDS.values()
    index = [[f"[`{row.program}`](#{_anchor(row.program)})", row.about] for row in rows]
    yield from _table(["command", "does"], index)
    for command in rows:
        yield f"## {command.program}\n\n{sentence(command.about)}\n"
        yield from [*(f"    {line}" for line in command.examples), ""]
        if command.launcher:
            hands_to = COMMANDS[command.hands_to].program
            yield from _table(_HEAD, _launcher(launcher_of(command)))
            yield f"All other flags go to [`{hands_to}`](#{_anchor(hands_to)}).\n"
        elif load(command.config) is Config:
            yield "Its flags are all keys of [configuration.md](configuration.md).\n"
        else:
            yield from _table(_HEAD, _flags(command))


def _flags(command: Command) -> Iterator[list[str]]:
    for name, kind, default, meaning in _keys(load(command.config)):
        if name == f"`{command.positional}`":
            yield [name, kind, default, f"{meaning} Stands without its flag."]
        else:
            yield [f"`--{name[1:]}", kind, default, meaning]


def _launcher(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    for action in parser._actions:
        if action.dest == "help":
            continue
        kind = "bool" if action.nargs == 0 else type_name(action.type or str)
        names = " | ".join(str(name) for name in action.choices or ()) or kind
        names = f"list[{names}]" if isinstance(action.default, list) else names
        flag = f"`{action.option_strings[0]}`"
        default = parser.get_default(action.dest)
        yield [flag, names, f"`{_value(default)}`", str(action.help)]


def _keys(kind: type[Any], prefix: str = "", made: Any = None) -> Iterator[list[str]]:
    """Yield key, type, default and meaning of each key of a dataclass, nested ones too."""
    types, meanings = get_type_hints(kind), abouts(kind)
    for key in fields(kind):
        hint = types[key.name]
        default = key.default_factory() if key.default_factory is not MISSING else key.default
        default = default if made is None else getattr(made, key.name)
        if is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{key.name}.", default)  # type: ignore[arg-type]
        else:
            text = "required" if default is MISSING else f"`{_value(default)}`"
            yield [f"`{prefix}{key.name}`", type_name(hint), text, meanings[key.name]]


def _configuration() -> Iterator[str]:
    hints, meanings = get_type_hints(Config), abouts(Config)
    top = [key for key in fields(Config) if not is_dataclass(hints[key.name])]
    yield "## The run\n"
    yield from _section(row for row in _keys(Config) if "." not in row[0])
    assert all(meanings[key.name] for key in top)
    for key in fields(Config):
        if is_dataclass(kind := hints[key.name]):
            yield f"## {key.name}\n\n{(kind.__doc__ or '').splitlines()[0]}\n"
            yield from _section(_keys(kind, f"{key.name}."))  # type: ignore[arg-type]
    yield f"## A geometry\n\n{(Geometry.__doc__ or '').splitlines()[0]}\n"
    yield from _table(["key", "type", "default", "meaning"], _keys(Geometry))
    yield from _presets()
    yield "## DeepSpeed\n"
    names = ", ".join(f"`{name}`" for name in resource_names("fitb.ds_configs", ".json"))
    yield f"`ds_config` takes a file, or one of {names}:"
    yield "[ds_configs/README.md](../ds_configs/README.md) says why each of their keys is there."


def _section(rows: Iterable[list[str]]) -> Iterator[str]:
    marked = []
    for name, kind, default, meaning in rows:
        key = name.strip("`")
        free = any(key == may or (may[-1] == "." and key.startswith(may)) for may in MAY_CHANGE)
        marked.append([name, kind, default, "free" if free else "", meaning])
    yield from _table(["key", "type", "default", "resume", "meaning"], marked)


def _presets() -> Iterator[str]:
    """What each preset says, beside the default."""
    texts = {name: (ROOT / f"fitb/presets/{name}.yaml").read_text() for name in preset_names()}
    said = {name: flatten(yaml.safe_load(text)) for name, text in texts.items()}
    order = {}
    for key, value in flatten(Config("")).items():
        section = key.rpartition(".")[0]
        if section == "model.student" and section not in order:  # a folder is a value, too
            order[section] = "a geometry"
        order[key] = value
    keys = sorted({key for preset in said.values() for key in preset}, key=[*order].index)
    yield "## Presets\n\nWhat is empty is the default.\n"
    for name, text in texts.items():
        comment = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
        yield f"- `{name}`: {' '.join(comment)}"
    yield ""
    yield from _table(
        ["key", "default", *said],
        [
            [f"`{key}`", f"`{_value(order[key])}`"]
            + [f"`{_value(preset[key])}`" if key in preset else "" for preset in said.values()]
            for key in keys
        ],
    )


def _value(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, str) and not value:
        return '""'
    if is_dataclass(value) and not isinstance(value, type):
        value = {key.name: getattr(value, key.name) for key in fields(value)}
    value = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)).split(
        "\n"
    )[0]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    lines = [head, ["---"] * len(head), *rows]
    yield from ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
    yield ""


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    kept = (letter for letter in heading.lower() if letter.isalnum() or letter in " -_")
    return "".join(kept).replace(" ", "-")


def main() -> None:
    for path, text in pages().items():
        path.write_text(text.rstrip("\n") + "\n")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
