"""Many models, shared among tasks, into a folder of results."""

import shutil

import pytest

from fitb.base.errors import ConfigError
from fitb.config.parser import parse
from fitb.evaluation.evaluate import evaluate
from fitb.evaluation.evaluate_config import EvaluateConfig
from fitb.evaluation.folder import evaluate_all, expand, share_of
from fitb.evaluation.printed import folder_text


def array(*values):
    """The environment of a task of an array: its number, the least, the largest, count, step."""
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    return {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(names, values, strict=True)}


@pytest.mark.parametrize(
    ("share", "env", "expected"),
    [
        (None, {}, (0, 1)),
        ("2/5", {}, (2, 5)),
        ("0/1", {"SLURM_ARRAY_TASK_ID": "7"}, (0, 1)),
        (None, array(3, 0, 9, 10, 1), (3, 10)),
        (None, array(6, 2, 8, 4, 2), (2, 4)),
        (None, array(4, 4, 4, 1, 1), (0, 1)),
        *[(share, {}, "I/N") for share in ("3/3", "x", "1", "-1/2")],
        (None, array(7, 1, 7, 3, 1), "has gaps"),
    ],
)
def test_a_task_takes_its_share_of_the_models_or_is_refused(share, env, expected):
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            share_of(share, env)
    else:
        assert share_of(share, env) == expected


def test_patterns_mean_folders_each_once_and_sorted(tmp_path):
    for name in ("step-2", "step-1", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-3.txt").touch()
    found = expand([str(tmp_path / "step-2"), str(tmp_path / "step-*"), "hub/name"])
    assert found == [str(tmp_path / "step-2"), str(tmp_path / "step-1"), "hub/name"]
    with pytest.raises(ConfigError, match="matches no folder"):
        expand([str(tmp_path / "nothing-*")])


@pytest.fixture
def evaluated(monkeypatch):
    """Which models were evaluated, in order."""
    seen = []

    def noting(config, ranks):
        seen.append(config.model)
        return evaluate(config, ranks)

    monkeypatch.setattr("fitb.evaluation.evaluate.evaluate", noting)
    return seen


def test_shares_fill_a_folder_and_what_is_there_is_not_done_again(
    make_model, general, tmp_path, evaluated
):
    paths = [make_model(seed) for seed in (1, 2, 3)]
    settings = {"models": paths, "out": str(tmp_path / "out"), "shards": general, "rows": 4}
    first = evaluate_all(EvaluateConfig(**settings, share="0/2"), {})
    assert evaluated == [paths[0], paths[2]]
    assert first["missing"] == [paths[1]]
    assert "2 of 3 models are evaluated; not yet: " + paths[1] in folder_text(first)
    whole = evaluate_all(EvaluateConfig(**settings, share="1/2"), {})
    assert evaluated == [paths[0], paths[2], paths[1]]
    assert whole["missing"] == [] and list(whole["models"]) == paths
    again = evaluate_all(EvaluateConfig(**settings), {})
    assert len(evaluated) == 3 and again == whole
    alone = evaluate(EvaluateConfig(model=paths[1], shards=general, rows=4))
    assert whole["models"][paths[1]]["metrics"] == alone["metrics"]
    text = folder_text(whole)
    for expected in (*paths, "unigram", "untrained", "span_em"):
        assert expected in text
    assert len(list((tmp_path / "out").glob("*.json"))) == 3


def test_other_settings_or_other_weights_are_another_result(
    make_model, general, tmp_path, evaluated
):
    path = tmp_path / "copy"
    shutil.copytree(make_model(1), path)
    settings = {"model": str(path), "out": str(tmp_path / "out"), "shards": general, "rows": 4}
    evaluate_all(EvaluateConfig(**settings), {})
    evaluate_all(EvaluateConfig(**settings, json=True), {})
    assert len(evaluated) == 1
    evaluate_all(EvaluateConfig(**settings, seed=1), {})
    assert len(evaluated) == 2
    shutil.copy(f"{make_model(2)}/model.safetensors", path / "model.safetensors")
    found = evaluate_all(EvaluateConfig(**settings), {})
    assert len(evaluated) == 3
    other = evaluate(EvaluateConfig(model=make_model(2), shards=general, rows=4))
    assert found["models"][str(path)]["metrics"] == other["metrics"]


def test_a_finished_folder_is_printed_without_torch(make_model, general, tmp_path):
    import subprocess
    import sys

    flags = ["--model", make_model(1), "--shards", general, "--rows", "4"]
    flags += ["--out", str(tmp_path / "out")]
    evaluate_all(parse(EvaluateConfig, "fitb evaluate", flags), {})
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"from fitb.cli import main; sys.exit(main(['evaluate', *{flags!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unigram" in done.stdout
