"""The table of commands: help of every row, errors that name what was meant, completion."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import os
import pty
import re
import shlex
import sys
from pathlib import Path

import pytest
from executable import ran

from fitb import cli
from fitb.base.errors import ConfigError, DataError
from fitb.cli.commands import COMMANDS
from fitb.cli.completion import CompletionConfig, script
from fitb.cli.execute import launcher_of, load, parser_of
from fitb.cli.functions import _lines
from fitb.config import Config
from fitb.config.keys import OF_OTHERS, hints
from fitb.config.parser import parse, preset_names

KEYS = set(dict(hints(Config)))
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "wandb")
LIGHT = (
    "config",
    "config.parser",
    "base.fsio",
    "base.rng",
    "cluster.local",
    "cluster.submit",
    "cli.completion",
)


def told(*words):
    """What a command prints of itself."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert cli.main(list(words)) == 0
    return out.getvalue()


def parsed(line):
    """Parse a command line as its command does; a run that names no folder gets one."""
    name = max((n for n, row in COMMANDS.items() if line.startswith(row.program)), key=len)
    row, launcher = COMMANDS[name], None
    words = shlex.split(line[len(row.program) :])
    if row.launcher:
        where, words = launcher_of(row).split(words)
        launcher = where.launcher
    if (kind := load(row.config)) is Config:
        words = ["--run_dir=x", *words]
    return parse(kind, row.program, words, positional=row.positional, launcher=launcher)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples_of_its_own(name):
    row, text = COMMANDS[name], told(*name.split(), "--help")
    assert text.startswith(f"usage: {row.program} ")
    assert text.endswith("".join(f"  {line}\n" for line in row.examples))
    assert all(any(word in line for word in (row.program, f"-m fitb {name}"))
               for line in row.examples if "sbatch" not in line)  # fmt: skip
    assert not row.launcher or f"[flags of `fitb {row.hands_to}`]" in text
    assert "None" not in text and "same as" not in row.about


@pytest.mark.parametrize("name", COMMANDS)
def test_every_module_and_attribute_that_a_row_names_is_there(name):
    """Without importing them: some take seconds."""
    row = COMMANDS[name]
    for named in {row.config, row.run, row.render, row.as_json, row.exit_code, row.launcher}:
        module, _, attribute = named.partition(":")
        if module.startswith("fitb"):
            tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_text())
            found = {getattr(node, "name", None) for node in tree.body} | {
                alias.name for node in tree.body if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }  # fmt: skip
            assert attribute in found, named


def test_the_lists_name_every_command_and_benchmark():
    overview, benchmarks = told("--help"), told("bench", "--help")
    for name, row in COMMANDS.items():
        if not row.launches:
            listed = benchmarks if name.startswith("bench ") else overview
            assert f"\n  {name.removeprefix('bench ')} " in listed


def test_light_modules_help_and_every_configuration_come_silently_and_without_torch():
    code = f"""
import contextlib, importlib, io, sys
light = [importlib.import_module(f"fitb.{{name}}") for name in {LIGHT}]
from fitb.cli import main
from fitb.cli.commands import COMMANDS
from fitb.cli.execute import launcher_of, load
assert not [name for name in ("tokenizers", "pyarrow") if name in sys.modules]
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["--help"]) == main(["train", "--help"]) == main(["completion"]) == 0
for row in COMMANDS.values():
    load(row.config)
    assert not row.launcher or launcher_of(row)
assert not [name for name in {HEAVY} if name in sys.modules]
"""
    done = ran(sys.executable, "-W", "error", "-c", code)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    "words", [["--help"], ["doctor", "--help"], ["doctor", "--config", "demo"]]
)
def test_help_and_the_doctor_come_where_libraries_are_missing(words):
    code = f"""
import sys
for name in ("torch", "jsonargparse", "yaml", "docstring_parser", "numpy"):
    sys.modules[name] = None
from fitb.cli import main
sys.exit(main({words}) > 2)
"""
    text = ran(sys.executable, "-c", code).stdout
    assert text and ("see packages" in text) == ("--config" in words)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fitb train --stepz 3", "unknown key 'stepz' (nearest: steps)"),
        ("fitb train --optim.learning_rate 3", "(nearest: optim.lr)"),
        ("fitb train --per_device_train_batch_size 3", "(nearest: micro_batch, rows of a forward"),
        ("fitb train --learning-rate 3", "(nearest: optim.lr)"),
        ("fitb train --optim.l 3", "unknown key 'optim.l'"),
        ("fitb train --see 3", "unknown key 'see'"),
        ("fitb train --optim '{lrr: 3}'", "(nearest: optim.lr)"),
        ("fitb train --optim 3", "optim=3; expected its keys, such as --optim.lr"),
        ("fitb train --precision fp61", "precision=fp61; expected auto | fp16 | bf16 | fp32"),
        ("fitb train --steps abc", "steps=abc; expected int"),
        ("fitb train --seed 3.5", "seed=3.5; expected int"),
        ("fitb train --steps", "--steps has no value; expected int"),
        ("fitb train --optim.betas 3", "optim.betas=3; expected [float, float]"),
        ("fitb train --objective.layer_map unform", "list[int] (nearest: uniform)"),
        ("fitb train --config tinybert", "(nearest: tinybert6)"),
        ("fitb train --model.student.hidden_sice 3", "(nearest: model.student.hidden_size)"),
        ("fitb train --model.student.hidden_size x", "model.student.hidden_size=x; expected int"),
        ("fitb train --model.teacher '{hidden_size: 313}'", "hidden_size=313 is not a multiple"),
        ("""fitb train --model.student '{"hidden_sice": 3}'""", "nearest: model.student.hidden_s"),
        ("fitb train extra", "unexpected argument 'extra'; `fitb train --help`"),
        ("fitb status a b", "unexpected argument 'b'"),
        ("fitb status", "run is missing; `fitb status --help` lists all flags"),
        ("fitb fill --json", "texts is missing"),
        ("fitb train -steps 3", "unknown key '-steps' (nearest: steps)"),
        ("fitb bench comm --mb+=abc", "mb+=abc; expected list[float]"),
        ("""fitb fill a --blanks '[{"regx": "b"}]'""", "(nearest: blanks.regex)"),
        ("fitb completion bsh", "expected bash | zsh (nearest: bash)"),
        ("fitb doctor --dep", "unknown key 'dep' (nearest: deep)"),
        ("fitb rehearse --cluster slrum", "auto | slurm | local (nearest: slurm)"),
        ("fitb rehearse --procceses 3", "`fitb rehearse --help` and `fitb train"),
        ("fitb rehearse --processes x", "'x'; `fitb rehearse --help`"),
        ("python -m launch.distill --nodez 2", "(nearest: nodes)"),
        ("python -m launch.evaluate --aray 2 --model x", "(nearest: array)"),
        ("python -m launch.prepare --task 2 --out x", "(nearest: tasks)"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_with_what_was_meant(line, said):
    with pytest.raises(ConfigError) as caught:
        parsed(line)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and "Parser key" not in str(caught.value)


# Of the Hugging Face Trainer; those that are fitb's too need no translation.
THEIRS = """
    learning_rate max_steps num_train_epochs per_device_train_batch_size output_dir seed fp16 bf16
    gradient_accumulation_steps warmup_ratio warmup_steps weight_decay logging_steps save_steps
    eval_steps max_grad_norm run_name report_to adam_beta1 adam_epsilon lr_scheduler_type deepspeed
    save_total_limit mlm_probability resume_from_checkpoint
    """


@pytest.mark.parametrize("name", sorted({*OF_OTHERS, *THEIRS.split()} - KEYS))
def test_a_name_of_another_trainer_leads_to_a_key_that_is_there(name):
    key, _ = OF_OTHERS[name]
    assert key in KEYS
    with pytest.raises(ConfigError, match=rf"nearest: {re.escape(key)}[,)]"):
        parsed(f"fitb train --{name} 1")


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("fitb evaluate --model x --originals", "originals", True),
        ("fitb evaluate --model x --originals false", "originals", False),
        ("fitb evaluate --originals true --model x", "originals", True),
        ("fitb inspect some/where --rows 7", "shards", "some/where"),
        ("fitb fill a b --json", "texts", ["a", "b"]),
        ("fitb fill - --json", "texts", ["-"]),
        ("fitb fill --json -- '-x ___'", "texts", ["-x ___"]),
        ("fitb compare a b --sets.mine c", "sets", {"mine": "c"}),
        ("fitb prepare --out x --source text --files+=a --files+ b", "files", ["a", "b"]),
        ("fitb train --seed -3", "seed", -3),
        ("fitb fill a --regex -x", "regex", "-x"),
    ],
)
def test_what_a_user_types_is_what_the_command_gets(line, key, value):
    assert getattr(parsed(line), key) == value


def test_lines_of_a_pipe_end_at_line_feeds_alone():
    """U+2028, NEL and form feed cut a text in two, and every later answer belonged to another."""
    data = "\ufeffa\u2028b\x85c\fd\r\n\ne".encode()
    assert _lines(data) == _lines(data + b"\n") == ["a\u2028b\x85c\fd", "", "e"]
    with pytest.raises(DataError, match=r"text 2 is not UTF-8.*iconv"):
        _lines(b"a\ncaf\xe9\n")


@pytest.mark.parametrize(
    ("words", "near"), [(["trian"], "nearest: train"), (["bench", "stp"], "nearest: bench step")]
)
def test_an_unknown_command_or_benchmark_names_the_nearest(words, near, capsys):
    assert cli.main(words) == 2
    assert near in capsys.readouterr().err


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(script(CompletionConfig("bash")))
    return path


def complete(path, line):
    """Words that bash offers at the end of a line; nothing that could be started is on its PATH."""
    cut = [part for word in line.split(" ") for part in re.split("(=)", word)]  # as bash cuts
    if cut[-2:] == ["=", ""]:
        cut.pop()
    lines = [
        f"source {path}",
        f"COMP_WORDS=({shlex.join(cut)}) COMP_CWORD={len(cut) - 1}",
        "_fitb",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    env = {"PATH": "/nowhere", "LANG": "C"}
    done = ran("/bin/bash", "--norc", "-c", "\n".join(lines), env=env)
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fitb com", ["compare", "completion"]),
        ("fitb bench d", ["data"]),
        ("fitb bench step --base", ["--baseline", "--baseline_precision"]),
        ("fitb train --optim.w", ["--optim.warmup_steps", "--optim.weight_decay"]),
        ("fitb train --config ", preset_names()),
        ("fitb train --config=tinybert4", ["tinybert4", "tinybert4-gpu"]),
        ("fitb train --precision=", ["auto", "fp16", "bf16", "fp32"]),
        ("fitb train --ds_config zero2", ["zero2", "zero2_offload"]),
        ("fitb train --steps ", []),
        ("fitb inspect data/shards --mask.strategy s", ["span"]),
        ("fitb doctor --de", ["--deep"]),
        ("fitb rehearse -- --config fine", ["finetune"]),
        ("fitb completion ", ["bash", "zsh"]),
    ],
)
def test_bash_completes_commands_flags_presets_and_choices(line, offered, bash_script):
    assert complete(bash_script, line) == offered


def test_completion_offers_every_flag_of_a_run(bash_script):
    flags = set(complete(bash_script, "fitb train --"))
    assert {f"--{key}" for key in KEYS} <= flags
    parser = parser_of(COMMANDS["train"])
    known = {flag for action in parser._actions for flag in action.option_strings}
    assert flags - known == {f"--{key}" for key in KEYS if key.count(".") == 2}


def test_a_terminal_that_presses_tab_gets_the_word(bash_script):
    """In an interactive bash one answer is filled in."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(PATH="/bin:/usr/bin", PS1="$ ", TERM="dumb", INPUTRC="/dev/null")
        os.execv("/bin/bash", ["bash", "--norc", "--noprofile", "-i"])
    keys = f'fitb() {{ echo "got:$*"; }}\nsource {bash_script}\nfitb trai\t--precis\tbf\t\nexit\n'
    os.write(terminal, keys.encode())
    seen = b""
    with contextlib.suppress(OSError):  # the terminal closes
        while part := os.read(terminal, 4096):
            seen += part
    os.waitpid(pid, 0)
    assert b"got:train --precision bf16" in seen, seen.decode()
