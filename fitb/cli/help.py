"""Help without a parser: the lists of commands and benchmarks, and the format of examples."""

from __future__ import annotations

from collections.abc import Sequence

from fitb.cli.commands import COMMANDS, benchmarks

FLAGS = ("-h", "--help")
_HEAD = """usage: fitb COMMAND [flags]

fitb distils BERT into TinyBERT on cluster schedulers, with bitwise resume after preemption.

commands:
"""
_TAIL = """
`fitb COMMAND --help` lists the flags of a command; boolean flags need no value. Exit codes of
train: 0 finished, 85 saved, run the same command again, 93 restarting would not help, anything else
a crash. Exit codes of the other commands: 0 done, 1 rehearsal failed, 2 configuration, 3 data or
models, 4 machine, 5 training. Of doctor: 0 no problem, 1 warnings, 2 errors.
"""
_BENCH = "measure, and print medians with their spread"


def commands() -> dict[str, str]:
    """Return the words that may follow `fitb`, with their descriptions."""
    lines: dict[str, str] = {}
    for command in COMMANDS.values():
        if not command.launches:
            word = command.name.split()[0]
            lines.setdefault(word, _BENCH if word == "bench" else command.about)
    return lines


def overview() -> str:
    """Return the text of `fitb --help`."""
    return _HEAD + _listed(commands()) + examples(("fitb doctor", "fitb demo")) + _TAIL


def benchmarks_overview() -> str:
    """Return the text of `fitb bench --help`."""
    lines = {what: COMMANDS[f"bench {what}"].about for what in benchmarks()}
    shown = ("fitb bench step --baseline", "srun fitb bench comm")
    head = f"usage: fitb bench WHAT [flags]\n\n{sentence(_BENCH)}\n\nwhat:\n"
    return head + _listed(lines) + examples(shown)


def _listed(lines: dict[str, str]) -> str:
    width = max(len(name) for name in lines) + 1
    return "".join(f"  {name:{width}} {about}\n" for name, about in lines.items())


def examples(lines: Sequence[str]) -> str:
    """Return the examples paragraph of a help text."""
    return "\nexamples:\n" + "".join(f"  {line}\n" for line in lines)


def sentence(about: str) -> str:
    """Return a description with a capital and a full stop."""
    return f"{about[0].upper()}{about[1:]}."
