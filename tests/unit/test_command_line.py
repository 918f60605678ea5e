"""What the command line says of itself: help of every command, errors that name the nearest."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fitb import cli, help
from fitb.completion import script
from fitb.config import Config
from fitb.errors import ConfigError, DataError
from fitb.flags import _OF_OTHERS, hints, parse, parser_for, preset_names
from fitb.front import flags_of, load

COMMANDS = [name for name in help.PAGES if name.startswith("fitb ")]
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "wandb")


def told(*words: str) -> str:
    """What a command prints of itself."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert cli.main(list(words)) == 0
    return out.getvalue()


def parsed(line: str):
    """Parse a command line as its command does; a run that names no folder gets one."""
    name = next(name for name in help.PAGES if line.startswith(name))
    page, flags = help.PAGES[name], shlex.split(line[len(name) :])
    if page.front:
        _, flags = load(page.front)().split(flags)
    folder = ["--run_dir=x"] if load(page.config) is Config else []
    return parse(load(page.config), name, [*folder, *flags])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples_of_its_own(name):
    text = told(*name.split()[1:], "--help")
    assert text.startswith(f"usage: {name} ")
    page = help.PAGES[name]
    assert text.endswith("".join(f"  {line}\n" for line in page.examples))
    assert all(any(name in line for name in (name, name.replace("fitb ", "-m fitb ")))
               for line in page.examples if "sbatch" not in line)  # fmt: skip
    parser = load(page.front)() if page.front else parser_for(load(page.config), name)
    assert text == parser.format_help()
    assert "None" not in text and "same as" not in page.about


@pytest.mark.parametrize("name", ["distill", "evaluate", "prepare"])
def test_every_launcher_explains_itself_with_examples(name, capsys):
    with pytest.raises(SystemExit):
        load(f"launch.{name}:main")(["--help"])
    text = capsys.readouterr().out
    page = help.PAGES[f"python -m launch.{name}"]
    assert text.endswith("".join(f"  {line}\n" for line in page.examples))
    assert f"[flags of `{page.hands_to}`]" in text


def test_every_command_has_a_page_and_every_page_a_command():
    assert set(help.commands()) == set(cli.COMMANDS)
    text = told("--help")
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)
    assert all(f"\n  {what} " in told("bench", "--help") for what in help.benchmarks())


def test_help_completion_and_every_parser_come_without_torch():
    code = f"""
import sys
from fitb import cli, completion, help
from fitb.front import load
cli.main(["--help"])
completion.script("bash")
for page in help.PAGES.values():
    load(page.config)
heavy = [name for name in {HEAVY} if name in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_list_of_commands_comes_in_half_a_second():
    """The best of three, so that a busy machine does not fail it."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fitb", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5, seconds


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fitb train --stepz 3", "unknown key 'stepz' (nearest: steps)"),
        ("fitb train --optim.learning_rate 3", "(nearest: optim.lr)"),
        ("fitb train --learning_rate 3", "(nearest: optim.lr)"),
        ("fitb train --per_device_train_batch_size 3", "(nearest: micro_batch)"),
        ("fitb train --fp16 true", "(nearest: precision)"),
        ("fitb train --optm.lr 3", "unknown key 'optm.lr' (nearest: optim.lr)"),
        ("fitb train --precision fp61", "precision=fp61; expected fp16 | bf16 | fp32 (nearest"),
        ("fitb train --track.wandb ofline", "(nearest: offline)"),
        ("fitb train --steps abc", "steps=abc; expected int"),
        ("fitb train --optim.betas 3", "optim.betas=3; expected [float, float]"),
        ("fitb train --objective.layer_map unform", "list[int] (nearest: uniform)"),
        ("fitb train --config tinybert", "(nearest: tinybert6)"),
        ("fitb train --model.student.hidden_sice 3", "(nearest: model.student.hidden_size)"),
        ("""fitb train --model.student '{"hidden_sice": 3}'""", "keys are num_hidden_layers"),
        ("fitb train extra", "'extra' belongs to no flag"),
        ("fitb status", "run is missing; `fitb status --help` lists all flags"),
        ("fitb prepare --out x --source parket", "(nearest: parquet)"),
        ("fitb bench step --lenght 3", "(nearest: length)"),
        ("fitb evaluate --model x --mask.stratgy span", "(nearest: mask.strategy)"),
        ("fitb serve m --limits.txts 3", "(nearest: limits.texts)"),
        ("fitb plan --teacher.hidden_sice 3", "(nearest: teacher.hidden_size)"),
        ("fitb completion bsh", "expected bash | zsh (nearest: bash)"),
        ("fitb doctor --dep", "unknown key 'dep' (nearest: deep)"),
        ("fitb rehearse --cluster slrum", "auto | slurm | local (nearest: slurm)"),
        ("fitb rehearse --procceses 3", "`fitb rehearse --help` and `fitb train"),
        ("python -m launch.distill --nodez 2", "(nearest: nodes)"),
        ("python -m launch.evaluate --aray 2 --model x", "(nearest: array)"),
        ("python -m launch.prepare --task 2 --out x", "(nearest: tasks)"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_with_what_is_nearest(line, said):
    with pytest.raises(ConfigError) as caught:
        parsed(line)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and "Parser key" not in str(caught.value)


def test_a_switch_stands_alone_or_before_its_value():
    for words, value in (("", True), ("=false", False), (" false", False), (" true", True)):
        assert parsed(f"fitb evaluate --model x --originals{words}").originals is value


def test_a_command_may_read_the_configuration_of_a_run(tmp_path):
    """`fitb export` has words of its own, which are no keys of a run."""
    (tmp_path / "config.yaml").write_text("run_dir: x")
    flags = ["--config", str(tmp_path / "config.yaml")]
    assert parse(Config, "fitb export", flags) == Config("x")


def test_lines_of_a_pipe_end_at_line_feeds_alone():
    """U+2028, NEL and form feed cut a text in two, and every later answer belonged to another."""
    data = "\ufeffa\u2028b\x85c\fd\r\n\ne".encode()
    assert cli._lines(data) == cli._lines(data + b"\n") == ["a\u2028b\x85c\fd", "", "e"]
    with pytest.raises(DataError, match=r"text 2 is not UTF-8.*iconv"):
        cli._lines(b"a\ncaf\xe9\n")


def test_names_of_other_trainers_lead_to_keys_that_are_there():
    known = flags_of(parser_for(Config, "fitb train"))
    assert set(_OF_OTHERS.values()) <= set(known)


@pytest.mark.parametrize(
    ("words", "near"), [(["trian"], "nearest: train"), (["bench", "stp"], "nearest: step")]
)
def test_an_unknown_command_or_benchmark_names_the_nearest(words, near, capsys):
    assert cli.main(words) == 2
    assert near in capsys.readouterr().err


@pytest.mark.parametrize("what", ["attention", "plan", "all"])
def test_a_benchmark_of_before_is_refused_with_those_that_there_are(what, capsys):
    assert cli.main(["bench", what, "--json"]) == 2
    said = capsys.readouterr().err
    assert what in said and all(name in said for name in ("step", "comm", "infer", "data"))


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(script("bash"))
    return path


def complete(path: Path, line: str) -> list[str]:
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
    done = subprocess.run(
        ["/bin/bash", "--norc", "-c", "\n".join(lines)],
        capture_output=True, text=True, env={"PATH": "/nowhere", "LANG": "C"},
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fitb tr", ["train"]),
        ("fitb com", ["compare", "completion"]),
        ("fitb bench d", ["data"]),
        ("fitb bench step --base", ["--baseline", "--baseline_precision"]),
        ("fitb train --optim.w", ["--optim.warmup_steps", "--optim.weight_decay"]),
        ("fitb train --config tiny", ["tinybert-reference", "tinybert4", "tinybert6"]),
        ("fitb train --config=tinybert4", ["tinybert4"]),
        ("fitb train --precision ", ["fp16", "bf16", "fp32"]),
        ("fitb train --precision=", ["fp16", "bf16", "fp32"]),
        ("fitb train --ds_config zero2", ["zero2", "zero2_offload"]),
        ("fitb train --steps ", []),
        ("fitb inspect data/shards --mask.strategy s", ["span"]),
        ("fitb doctor --de", ["--deep"]),
        ("fitb rehearse --cluster l", ["local"]),
        ("fitb rehearse -- --config fine", ["finetune"]),
        ("fitb completion ", ["bash", "zsh"]),
        ("fitb status ", []),
    ],
)
def test_bash_completes_commands_flags_presets_and_choices(line, offered, bash_script):
    assert complete(bash_script, line) == offered


def test_completion_offers_every_flag_of_a_run_and_all_presets(bash_script):
    flags = set(complete(bash_script, "fitb train --"))
    assert {f"--{key}" for key, _ in hints(Config)} <= flags
    assert complete(bash_script, "fitb train --config ") == preset_names()


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
