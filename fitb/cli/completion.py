"""Shell completion of commands, flags, presets and choices, as one script.

`fitb completion bash` generates the script from the parsers. It contains all words, so that
pressing TAB starts no Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fitb.cli.commands import COMMANDS, benchmarks
from fitb.cli.execute import launcher_of, load
from fitb.cli.help import commands
from fitb.config import Config
from fitb.config.keys import choices, hints
from fitb.config.parser import preset_names, resource_names

Shell = Literal["bash", "zsh"]
_THEIR_COMPLETION = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}

# bash splits a word at `=`, zsh does not.
_LOOKUP = """
_fitb() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}
  local first=2 given=''
  if [[ $command == bench ]]; then command="bench ${COMP_WORDS[2]}" first=3; fi
  if [[ $word == = ]]; then word=''; fi
  if [[ $before == = ]]; then before=${COMP_WORDS[COMP_CWORD-2]}; fi
  if [[ $word == --*=* ]]; then before=${word%%=*} given=$before=; word=${word#*=}; fi
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W "$(_fitb_words '')" -- "$word"))
  elif ((COMP_CWORD < first)); then
    COMPREPLY=($(compgen -W "$(_fitb_words bench)" -- "$word"))
  elif [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$(_fitb_words "$command")" -- "$word"))
  else
    if ((COMP_CWORD == first)); then before=''; fi
    COMPREPLY=($(compgen -P "$given" -W "$(_fitb_words "$command $before")" -- "$word"))
  fi
}
complete -o default -F _fitb fitb"""


@dataclass(frozen=True)
class CompletionConfig:
    """Shell of the completion script.

    Args:
        shell: the shell.
    """

    shell: Shell = "bash"


def script(config: CompletionConfig) -> str:
    """Return the completion script for a shell."""
    shell = config.shell
    cases = "".join(
        f"    '{key}') echo '{' '.join(words)}' ;;\n" for key, words in _words() if words
    )
    head = f"# Completion of fitb for {shell}, made by `fitb completion {shell}`.\n"
    lookup = f'_fitb_words() {{\n  case "$1" in\n{cases}  esac\n}}{_LOOKUP}'
    return head + _THEIR_COMPLETION[shell] + lookup


def _words() -> Iterator[tuple[str, list[str]]]:
    """Yield the words that may follow each command, and each of its flags."""
    yield "", [*commands(), "--help", "--version"]
    yield "bench", [*benchmarks(), "--help"]
    for command in COMMANDS.values():
        if command.launches:
            continue
        kind = load(command.config)
        values = {key: choices(hint) for key, hint in hints(kind)}
        flags = ["help", "config", "print_config", *values]
        if kind is Config:
            values["config"] = preset_names()
            values["ds_config"] = resource_names("fitb.ds_configs", ".json")
        if command.launcher:
            launcher = launcher_of(command)
            flags = list(dict.fromkeys([*launcher.names(), *flags]))
            values |= {action.dest: list(action.choices or ()) for action in launcher._actions}
        yield command.name, [f"--{flag}" for flag in flags]
        yield f"{command.name} ", values.get(command.positional, [])
        for key, words in values.items():
            yield f"{command.name} --{key}", words
