"""The documentation against the code: every command parses, every link leads somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from documents import PAGES, ROOT, SCRIPTS, anchors, blocks, commands, prose

from fitb.base.errors import ConfigError
from fitb.cli import help
from fitb.cli.commands import COMMANDS as TABLE
from fitb.cli.execute import launcher_of, load
from fitb.cluster.sweep import plan_sweep
from fitb.config import Config
from fitb.config.parser import parse

# Programs that are not ours: why a line that starts with one is not run.
THEIRS = {
    "hf": "needs a network",
    "pip": "needs a network",
    "wandb": "needs an account",
    "git": "needs a network",
    "curl": "asks a server",
    "export": "sets a variable",
    "for": "is a loop, whose command is looked at",
    "done": "ends a loop",
    ".": "activates an environment",
    "source": "of a shell",
    "scancel": "needs a job",
}
SCRIPT_OF = {
    "slurm/distill.sh": "fitb train",
    "slurm/prepare.sh": "python -m launch.prepare",
    "slurm/sweep.sh": "python -m launch.sweep",
    "slurm/evaluate.sh": "fitb evaluate",
}
# Fences of these hold what was printed, or code that is tested elsewhere.
NO_COMMANDS = ("python", "text", "yaml", "json")
STARTS = (*THEIRS, "fitb", "python", "sbatch", "srun", "torchrun", "make", "bash")
ROWS = {row.program: row for row in TABLE.values()}
ALL = [block for path in [*PAGES, *SCRIPTS] for block in blocks(path)]


def holds_commands(block):
    if block.kind in NO_COMMANDS:
        return False
    first = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", block.text).split()
    return block.kind in ("bash", "sh", "head") or (bool(first) and first[0] in STARTS)


COMMANDS = [block for block in ALL if holds_commands(block)]


def flags_of_sbatch(words):
    """Options of sbatch that we know; a typing error is not among them."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for name in ("nodes", "ntasks", "gpus-per-node", "array", "dependency", "signal", "partition",
                 "time", "job-name", "ntasks-per-node", "cpus-per-task"):  # fmt: skip
        short = {"dependency": ["-d"], "job-name": ["-J"]}.get(name, [])
        parser.add_argument(f"--{name}", *short)
    parser.add_argument("--no-requeue", action="store_true")
    found, rest = parser.parse_known_args([word for word in words if word != "..."])
    assert not rest, f"sbatch does not know {rest}"


def check(name, words):
    """Parse the flags of a command; `...` stands for what a reader fills in."""
    row = ROWS[name]
    if row.launcher:
        _, words = launcher_of(row).split(words)
    if name == "python -m launch.sweep":
        words = plan_sweep([word for word in words if word != "..."], "x").words(0)
    kind = load(row.config)
    sketch = [word for word in words if word != "..."]
    missing = {"fitb evaluate": "model", "python -m launch.prepare": "out"}
    given = {word.lstrip("-").partition("=")[0].rstrip("+") for word in words}
    if kind is Config and "run_dir" not in given:  # those who submit name it
        sketch = ["--run_dir=x", *sketch]
    if "..." in words and name in missing and not given & {missing[name], "models"}:
        sketch = [*sketch, f"--{missing[name]}=x"]
    parse(kind, name, sketch, positional=row.positional)


def check_line(words):
    """Look at one command as far as can be done without running it."""
    if words[0] == "srun":
        place = next(i for i, word in enumerate(words[1:], 1) if not word.startswith("-"))
        flags_of_sbatch(words[1:place])
        words = words[place:]
    program, *rest = words
    if program == "torchrun":
        place = rest.index("-m")
        program, *rest = rest[place + 1 :]
    if words[:2] == ["python", "-m"]:
        program, *rest = (
            (rest[1], *rest[2:]) if rest[1] == "fitb" else (" ".join(words[:3]), *rest[2:])
        )
    if program == "fitb":
        if rest == ["bench"] or rest[1:2] == ["--help"] or rest[0] == "--help":
            assert rest[0] in (*help.commands(), "--help")
            return
        command = " ".join(rest[:2] if rest[0] == "bench" else rest[:1])
        assert f"fitb {command}" in ROWS, f"no command {command!r}"
        check(f"fitb {command}", rest[len(command.split()) :])
    elif program in ROWS:
        check(program, rest)
    elif program == "sbatch" and not set(rest) & set(SCRIPT_OF):
        place = rest.index("--wrap")
        flags_of_sbatch([*rest[:place], *rest[place + 2 :]])
        check_line(shlex.split(rest[place + 1]))
    elif program == "sbatch":
        place = next(i for i, word in enumerate(rest) if word in SCRIPT_OF)
        flags_of_sbatch(rest[:place])
        check(SCRIPT_OF[rest[place]], rest[place + 1 :])
    elif program == "make":
        text = (ROOT / "Makefile").read_text()
        variables = {word.partition("=")[0] for word in rest if "=" in word}
        assert {word for word in rest if "=" not in word} <= set(
            re.findall(r"^([\w-]+):", text, re.MULTILINE)
        ), rest
        assert all(f"$({name})" in text for name in variables), variables
    elif program == "bash" and rest[0] in SCRIPT_OF:
        assert rest[1] == "--dry-run", f"{rest[0]} is for sbatch but with --dry-run"
        check(SCRIPT_OF[rest[0]], rest[2:])
    elif program in ("python", "bash"):
        assert (ROOT / rest[0]).exists(), rest[0]
    else:
        assert program in THEIRS, f"{program} is neither ours nor in THEIRS, with a reason"


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_every_command_of_the_documentation_parses(block):
    """The examples of every help are among them, in docs/cli.md."""
    for words in commands(block.text):
        check_line(words)


@pytest.mark.parametrize(
    "line",
    [
        "fitb trian --run_dir x",
        "fitb train --run_dir x --stepz 3",
        "fitb train --run_dir x --steps many",
        "fitb train --run_dir x --config tinybert5",
        "sbatch --nodez=2 slurm/distill.sh --config tinybert4",
        "sbatch --nodes=2 slurm/distill.sh --config tinybert4 --optim.lrr 1",
        "python -m launch.distill --cluster slrum",
        "torchrun --nproc-per-node 4 -m fitb evaluate --modle x",
        "make tset",
        "python docs/genrate.py",
        "fitb export runs/tb4",
        "rm -rf /",
    ],
)
def test_a_wrong_command_in_the_documentation_would_be_found(line):
    with pytest.raises((ConfigError, AssertionError)):
        for words in commands(line):
            check_line(words)


def test_the_collector_finds_the_commands():
    """In the README alone more than twelve; in every head of a script one."""
    found = [words for block in COMMANDS for words in commands(block.text)]
    readme = [block for block in COMMANDS if block.path.name == "README.md"]
    assert sum(len(list(commands(block.text))) for block in readme) > 12 and len(found) > 60
    assert {block.path for block in COMMANDS} >= set(SCRIPTS)
    assert not [str(b) for b in ALL if "fitb train --" in b.text and b not in COMMANDS]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_page_and_a_heading_that_are_there(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path).replace("\n", " ")):
        url = urlsplit(target)
        if url.scheme:
            assert url.scheme in ("http", "https") and "." in url.netloc and " " not in target
            continue
        there = (path.parent / url.path).resolve() if url.path else path
        assert there.exists(), target
        assert not url.fragment or url.fragment in anchors(there), target


def test_every_page_is_linked_from_the_readme_or_the_index():
    index = [ROOT / "README.md", ROOT / "docs" / "README.md"]
    linked = {
        (page.parent / target).resolve()
        for page in index
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target
    }
    assert not set(PAGES) - linked - {ROOT / "README.md", ROOT / "docs" / "README.md"}


def test_the_generated_references_are_those_of_the_code():
    """After a change of flags, keys, docstrings or presets: python docs/generate.py"""
    generate: dict[str, object] = {"__file__": str(ROOT / "docs" / "generate.py"), "__name__": "g"}
    source = Path(str(generate["__file__"])).read_text()
    exec(compile(source, str(generate["__file__"]), "exec"), generate)
    for path, text in generate["pages"]().items():  # type: ignore[operator]
        assert path.read_text() == text.rstrip("\n") + "\n", f"{path.name}: python docs/generate.py"
