"""Flags and YAML into configuration dataclasses, through jsonargparse; nobody else parses."""

from __future__ import annotations

import re
from argparse import SUPPRESS
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from fitb.config import DROPPED, Config
from fitb.errors import ConfigError, nearest
from fitb.front import RawExamples, flags_of, load, sentence
from fitb.help import PAGES, Page, examples

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
        return Path(__file__).parents[1] / package.rpartition(".")[2]


# What jsonargparse says in other words.
_HELP_OF_THEIRS = {
    "help": "show this help message and exit",
    "print_config": "print what the other flags make, as YAML for --config, and exit",
    "model.teacher.help": "show the keys of a geometry and exit",
    "model.student.help": "show the keys of a geometry and exit",
    "blanks.help": "show the keys of a constraint and exit",
}


# What the Hugging Face Trainer and scripts beside it call ours.
_OF_OTHERS = {
    "adam_epsilon": "optim.eps",
    "batch_size": "global_batch",
    "bf16": "precision",
    "deepspeed": "ds_config",
    "early_stopping_patience": "eval.patience",
    "eval_steps": "eval.every_steps",
    "fp16": "precision",
    "gradient_accumulation_steps": "global_batch",
    "learning_rate": "optim.lr",
    "lr_scheduler_type": "optim.schedule",
    "max_grad_norm": "optim.clip_norm",
    "max_steps": "steps",
    "max_train_steps": "steps",
    "mlm_probability": "mask.fraction",
    "num_train_epochs": "steps",
    "output_dir": "run_dir",
    "per_device_train_batch_size": "micro_batch",
    "report_to": "track.wandb",
    "run_name": "track.name",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep_last",
    "student_model": "model.student",
    "teacher_model": "model.teacher",
    "train_batch_size": "global_batch",
    "warmup_ratio": "optim.warmup_steps",
}


class Formatter(RawExamples, DefaultHelpFormatter):
    """jsonargparse's help, with examples as they are."""


class Parser(ArgumentParser):
    """An argument parser whose errors are ConfigErrors that name the nearest valid key."""

    kind: type[Any] | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(self.explain(message)) from ex

    def explain(self, message: str) -> str:
        """What the library says, in one line and in the words of fitb."""
        text = " ".join(message.split())
        group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", text)
        flag = re.search(r"unrecognized arguments: (-*)(\S+)", text, re.IGNORECASE)
        key = re.search(r"Option '([\w.]+)' is not accepted", text)
        value = re.search(r'Parser key "([\w.]+)": (.*)', text)
        missing = re.search(r"the following arguments are required: (.*)", text)
        if flag and not flag[1]:
            return f"{flag[2]!r} belongs to no flag; {self._lists()}"
        if group or flag or key:
            name = f"{group[1]}.{group[2]}" if group else (flag[2] if flag else str(key and key[1]))
            name = name.partition("=")[0]
            known, other = self._known(), _OF_OTHERS.get(name.rpartition(".")[2])
            near = f" (nearest: {other})" if other in known else nearest(name, known)
            return f"unknown key {name!r}{near}; {self._lists()}"
        if value:
            return self._explain_value(value[1], value[2])
        if missing:
            return f"{missing[1]} is missing; {self._lists()}"
        return "; ".join(_reasons(text)) or text

    def _explain_value(self, key: str, text: str) -> str:
        hint = dict(hints(self.kind)).get(key) if self.kind else None
        unknown = re.search(r"unknown key '([\w.]+)'", text)
        if unknown:  # of a section that may also be something else
            sections: list[Any] = [part for part in get_args(hint) if is_dataclass(part)]
            inner = [name for section in sections for name, _ in hints(section)]
            near = nearest(unknown[1], inner).replace(": ", f": {key}.")
            return f"unknown key '{key}.{unknown[1]}'{near}; {self._lists()}"
        reasons = _reasons(text)
        given = re.search(r"(?:Got|Given) value: (.*)", text)
        if reasons or not given or hint is None:
            return f"{key}: {'; '.join(reasons) or text}"
        near = nearest(given[1], choices(hint))
        return f"{key}={given[1]}; expected {type_name(hint)}{near}"

    def _known(self) -> list[str]:
        page = PAGES.get(str(self.prog))
        return flags_of(self) + (flags_of(load(page.front)()) if page and page.front else [])

    def _lists(self) -> str:
        page = PAGES.get(str(self.prog))
        if page and page.hands_to:
            return f"`{self.prog} --help` and `{page.hands_to} --help` list all flags"
        return f"`{self.prog} --help` lists all flags"


def parser_for(kind: type[Any], prog: str) -> Parser:
    """Build the parser of a configuration dataclass: its keys as dotted flags, and --config."""
    page = _page(kind, prog)
    words, usage = "", ""
    told: dict[str, Any] = {}
    if page and not page.front:
        words = page.words
        usage = f" {words.upper()} ..." if words and _is_list(kind, words) else ""
        told = {
            "description": sentence(page.about),
            "epilog": examples(page.examples).lstrip(),
        }
    parser = Parser(prog=prog, formatter_class=Formatter, allow_abbrev=False, **told)
    parser.kind = kind
    presets = f", or a preset: {', '.join(preset_names())}" if kind is Config else ""
    parser.add_argument("--config", action="config", help=f"YAML file of these flags{presets}")
    for key in DROPPED if kind is Config else ():
        parser.add_argument(f"--{key}", help=SUPPRESS)
    plain = bool(words) and _is_list(kind, words)
    parser.add_class_arguments(kind, None, skip={words} if plain else None)
    if plain:
        about = abouts(kind)[words]
        parser.add_argument(words, nargs="+", type=str, metavar=words.upper(), help=about)
    for action in parser._actions:
        if words and action.dest == words and not plain:
            action.help = f"{str(action.help).rstrip('.')}; may stand first without its flag"
            usage = f" {words.upper()}"
        elif action.help == "Path to a configuration file.":
            action.help = "YAML file of these flags"
        else:
            action.help = _HELP_OF_THEIRS.get(action.dest, action.help)
    for group in parser._action_groups:
        if group.title == (kind.__doc__ or "").split("\n")[0].rstrip("."):
            group.title = "flags"
    parser.usage = f"{prog}{usage}{_required(parser, words)} [flags]"
    return parser


def parse(kind: type[T], prog: str, args: Sequence[str]) -> T:
    """Parse flags into an instance of `kind`; what plain words fill, the page of `prog` says.

    Raises: ConfigError naming the key, the value and the nearest valid key.
    """
    page = _page(kind, prog)
    words = page.words if page else ""
    if words and not _is_list(kind, words) and args and not args[0].startswith("-"):
        args = [f"--{words}={args[0]}", *args[1:]]
    parser = parser_for(kind, prog)
    switches = {f"--{name}" for name, hint in hints(kind) if hint is bool}
    with_presets = _with_presets(args) if kind is Config else args
    namespace = parser.parse_args(list(_switched(list(with_presets), switches)))
    for key in DROPPED:
        namespace.pop(key, None)
    try:
        values = vars(parser.instantiate(namespace))
    except ValueError as error:  # how jsonargparse passes on what a nested section refuses
        raise ConfigError(parser.explain(str(error))) from error
    return kind(**{key.name: values[key.name] for key in fields(kind)})  # type: ignore[arg-type]


def _switched(args: Sequence[str], switches: set[str]) -> Iterator[str]:
    """Give a switch that stands without a value the value true."""
    for word, after in zip(args, [*args[1:], ""], strict=False):
        yield f"{word}=true" if word in switches and after not in ("true", "false") else word


def _page(kind: type[Any], prog: str) -> Page | None:
    """The page of a command where these are its flags; `fitb export` reads those of runs, too."""
    page = PAGES.get(prog)
    return page if page and page.config == f"{kind.__module__}:{kind.__name__}" else None


def hints(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a dataclass, nested ones too, and their types."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from hints(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", hint


def abouts(kind: type[Any]) -> dict[str, str]:
    """Return what the docstring of a dataclass, and those of its bases, say of each key."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        for key in docstring_parser.parse(base.__doc__ or "").params:
            found[key.arg_name] = " ".join((key.description or "").split())
    return found


def choices(hint: Any) -> list[str]:
    """Return the words that a type allows, as far as it names them; empty where it names none."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    if _is_union(hint):
        found = [word for part in get_args(hint) for word in choices(part)]
        return found + ["null"] * (bool(found) and NoneType in get_args(hint))
    return []


def type_name(hint: Any) -> str:
    """Return a type as a user would say it: float | null, fp16 | bf16 | fp32, list[int]."""
    if get_origin(hint) is Literal:
        return " | ".join(choices(hint))
    if _is_union(hint):
        return " | ".join(type_name(part) for part in get_args(hint))
    if get_origin(hint) in (list, tuple, dict):
        parts = ", ".join(type_name(part) for part in get_args(hint))
        return (
            f"[{parts}]" if get_origin(hint) is tuple else f"{get_origin(hint).__name__}[{parts}]"
        )
    return "null" if hint is NoneType else hint.__name__.lower()


def _reasons(text: str) -> list[str]:
    """Why a value is none of several types, as far as more than a type is said."""
    found = re.findall(r" - ((?!Expected).*?)(?= - | Given value|$)", text)
    return found if "Errors:" in text else []


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _is_list(kind: type[Any], key: str) -> bool:
    return get_origin(get_type_hints(kind)[key]) is list


def _required(parser: Parser, words: str) -> str:
    flags = [a for a in parser._actions if a.required and a.option_strings and a.dest != words]
    return "".join(f" {a.option_strings[0]} {a.dest.upper()}" for a in flags)


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
