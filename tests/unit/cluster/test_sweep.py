"""Which runs a sweep has, where they lie, and what each is told."""

from __future__ import annotations

import itertools
import json
import shlex

import pytest

from fitb.base.errors import ConfigError
from fitb.cluster.sweep import main, plan_sweep

GRID = ["--grid.optim.lr", "[1e-4, 0.0003]", "--grid.objective.hidden=[0, 1]"]


def test_grid_is_every_combination_and_each_run_gets_its_own_flags_last(tmp_path):
    words = [*GRID, "--run_dir", str(tmp_path / "s"), "--steps", "9", "--optim.lr", "5"]
    sweep = plan_sweep(words, "unused")
    expected = [("1e-4", "0"), ("1e-4", "1"), ("0.0003", "0"), ("0.0003", "1")]
    assert [tuple(member.values()) for member in sweep.members] == expected
    names = sweep.names()
    assert names[1] == "001-lr=1e-4-hidden=1" and len(set(names)) == 4
    shared = ["--run_dir", str(tmp_path / "s" / names[1]), "--track.group", "s", *words[5:]]
    assert sweep.words(1) == [*shared, "--optim.lr", "1e-4", "--objective.hidden", "1"]


def test_values_of_any_kind_are_words_of_the_command_line_and_names_of_folders():
    student = {"num_hidden_layers": 2, "hidden_size": 64}
    values = json.dumps([None, True, student, "a/b c"])
    sweep = plan_sweep(["--grid.x.a", values, "--grid.y.a", "[1]"], "mine")
    words = [member["x.a"] for member in sweep.members]
    assert words == ["null", "true", json.dumps(student), "a/b c"]
    assert sweep.folder.name == "mine" and sweep.names()[3] == "003-x.a=a_b_c-y.a=1"
    assert all("/" not in name and len(name) < 80 for name in sweep.names())


def test_random_draws_depend_on_seed_and_index_alone_and_lie_within_their_ranges():
    wide = ["--grid.optim.lr", "{low: 1e-5, high: 1e-1, log: true}", "--grid.mask.fraction"]
    wide += ["{low: 0.1, high: 0.4}", "--grid.seed", "[1, 2, 3]"]
    few, many, other = (
        plan_sweep([*wide, "--random", number, *seed], "s").members
        for number, seed in (("5", []), ("400", []), ("5", ["--random_seed", "1"]))
    )
    assert few == many[:5] and few != other
    rates = sorted(float(member["optim.lr"]) for member in many)
    assert 1e-5 <= rates[0] < 1e-4 and 1e-2 < rates[-1] <= 1e-1
    assert 5e-4 < rates[200] < 2e-3  # the middle of the logarithms is 1e-3
    assert all(0.1 <= float(member["mask.fraction"]) <= 0.4 for member in many)
    assert {member["seed"] for member in many} == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--grid.KEY"),
        (["--grid.optim.lr"], "no value"),
        (["--grid.optim.lr", "1e-4"], "expected a list"),
        (["--grid.optim.lr", "[]"], "expected a list"),
        (["--grid.optim.lr", "[1"], "expected a list"),
        (["--grid.optim.lr", "{low: 1e-5, high: 1e-3}"], "--random N"),
        (["--random", "2", "--grid.optim.lr", "{low: 0, high: 1, log: true}"], "expected a list"),
        (["--random", "2", "--grid.optim.lr", "{low: 2, high: 1}"], "expected a list"),
        (["--random", "2", "--grid.optim.lr", "{low: a, high: 1}"], "expected a list"),
        (["--random", "0", *GRID], "at least 1"),
        (["--random", "x", *GRID], "at least 1"),
        ([*GRID, *GRID], "given twice"),
        (["--grid.run_dir", "[a, b]"], "each run has for itself"),
        (["--grid.track.name", "[2024-01-01]"], "quotes"),
    ],
)
def test_what_is_no_sweep_is_refused_with_what_was_expected(words, said):
    with pytest.raises(ConfigError, match=said):
        plan_sweep(words, "s")


def test_task_of_an_array_is_told_its_run_and_another_sweep_in_the_folder_is_refused(
    tmp_path, capsys
):
    words = [*GRID, "--run_dir", str(tmp_path / "my s"), "--track.name", "two $words"]
    assert main(["2", *words]) == 0
    assert shlex.split(capsys.readouterr().out) == plan_sweep(words, "").words(2)
    record = (tmp_path / "my s" / "sweep.json").read_bytes()
    assert main(["3", *words]) == 0
    assert main(["4", *words]) == 2 and "--array=0-3" in capsys.readouterr().err
    assert main(["0", *words, "--grid.seed", "[1]"]) == 2
    assert "choose another --run_dir" in capsys.readouterr().err
    assert (tmp_path / "my s" / "sweep.json").read_bytes() == record
    (tmp_path / "my s" / "sweep.json").write_text("{")
    assert main(["0", *words]) == 2 and "sweep.json" in capsys.readouterr().err
    assert list(itertools.islice(tmp_path.iterdir(), 2)) == [tmp_path / "my s"]
