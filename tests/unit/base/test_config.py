"""One typed definition: what it accepts, what it refuses and in which words."""

import dataclasses
import itertools
import math
import re
from typing import Any

import pytest
import yaml

from fitb.base.errors import ConfigError
from fitb.config import (
    AlgorithmsConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    Geometry,
    MaskConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    SpeedConfig,
    StopConfig,
    TrackConfig,
)
from fitb.config.parser import parse, preset_names, resolve_resource
from fitb.config.schema import DROPPED
from fitb.config.yaml import changed_keys, to_yaml, with_algorithms_of

REJECTED: dict[type[Any], dict[str, list[Any]]] = {
    Geometry: {"hidden_size": [313], "num_attention_heads": [0], "num_hidden_layers": [0]},
    DataConfig: {
        "window_shards": [0],
        "prefetch_steps": [-1],
        "cache_gb": [-0.5, math.nan],
        "fetch_deadline_s": [-1.0],
    },
    MaskConfig: {
        "fraction": [0.0, 1.0, math.nan],
        "mask_share": [-0.1, 0.95],
        "random_share": [-0.1],
        "span_p": [0.0, 1.1],
        "span_max_words": [0],
    },
    ObjectiveConfig: {"hidden": [-1.0], "mlm": [math.nan], "temperature": [0.0]},
    OptimConfig: {
        "lr": [-1e-4],
        "warmup_steps": [-1],
        "betas": [(0.9, 1.0)],
        "eps": [-1.0],
        "clip_norm": [-1.0],
        "weight_decay": [-0.1],
    },
    EvalConfig: {"rows": [-4], "every_steps": [-1], "patience": [-1]},
    CheckpointConfig: {"keep_last": [1], "every_steps": [-1]},
    TrackConfig: {"every_steps": [0]},
    SpeedConfig: {"teacher_rows": [0]},
    StopConfig: {"time_budget_min": [-5.0]},
    ModelConfig: {"dropout": [7.0]},
    Config: {"steps": [0], "global_batch": [0], "micro_batch": [-2]},
}


def parsed(*flags):
    return parse(Config, "fitb train", ["--run_dir", "run", *flags])


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(k, name, v) for k, keys in REJECTED.items() for name, vs in keys.items() for v in vs],
)
def test_a_value_out_of_range_is_refused_with_its_name(kind, name, value):
    with pytest.raises(ConfigError) as caught:
        kind(**{name: value} | ({"run_dir": "r"} if kind is Config else {}))
    assert str(value) in str(caught.value)
    assert f"{name}={value}" in str(caught.value) or "objective weights" in str(caught.value)


def test_an_objective_without_a_term_is_refused():
    with pytest.raises(ConfigError, match="at least one term"):
        ObjectiveConfig(embedding=0.0, hidden=0.0, attention=0.0, logits=0.0, mlm=0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz: 1\n", "nearest: steps)"),
        ("optim: {lrr: 1}\n", "nearest: optim.lr)"),
        ("mask: {strategies: token}\n", "nearest: mask.strategy)"),
        ("model: {student: {num_hidden_layer: 4}}\n", "model.student.num_hidden_layers)"),
        ("optim: {lr: fast}\n", "optim.lr=fast; expected float"),
        ("steps: {a: 1}\n", "steps="),
        ("optim: [1\n", "config.yaml is not YAML"),
        ("- 1\n", "config.yaml is a list"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, said):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    for flags in (["--config", str(path)], [f"--config={path}"]):
        with pytest.raises(ConfigError, match=re.escape(said)):
            parsed(*flags)


FAR = Config(
    run_dir="runs/caf\u00e9: 1",
    precision="bf16",
    seed=-3,
    model=ModelConfig(teacher=Geometry(2, 8, 16, 2), student="on", dropout=0.0),
    objective=ObjectiveConfig(layer_map=[3, 1], temperature=1e-7, form="tinybert_reference"),
    optim=OptimConfig(lr=1e-300, betas=(0.5, 0.75), eps=1e-12),
    stop=StopConfig(time_budget_min=0.1),
    track=TrackConfig(entity="team", name="12:30:00"),
)
LIKE_NUMBERS = ("007", "1e5", "12e4567", "1_0", "0x1f", ".5", "true")  # as hashes are


@pytest.mark.parametrize("config", [FAR, *map(Config, LIKE_NUMBERS), "", *preset_names()])
def test_a_configuration_and_every_preset_reads_back_from_what_a_run_saves(tmp_path, config):
    if isinstance(config, str):
        config = parsed("--config", config) if config else parsed()
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert parse(Config, "fitb train", ["--config", str(path)]) == config
    assert changed_keys(yaml.safe_load(path.read_text()), config) == []


def test_a_file_wins_over_a_preset_and_a_folder_of_its_name_does_not(tmp_path, monkeypatch):
    """A run folder is easily named after its preset."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinybert4").mkdir()
    assert resolve_resource("tinybert4", "fitb.presets", ".yaml").is_file()
    (tmp_path / "tinybert6").write_text("steps: 3\n")
    assert parsed("--config", "tinybert6").steps == 3


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"run_dir": "elsewhere", "micro_batch": 1, "precision": "bf16", "ds_config": "zero1"}, []),
        ({"data": DataConfig("elsewhere", prefetch_steps=0, cache_dir="x", cache_gb=1.0,
                             fetch_deadline_s=9.0)}, []),
        ({"track": TrackConfig(every_steps=1, wandb="disabled", name="other")}, []),
        ({"checkpoint": CheckpointConfig(every_steps=1, keep_last=5)}, []),
        ({"stop": StopConfig(time_budget_min=1.0)}, []),
        ({"steps": 5, "seed": 1, "precision": "bf16"}, ["seed", "steps"]),
        ({"global_batch": 128}, ["global_batch"]),
        ({"data": DataConfig(window_shards=1)}, ["data.window_shards"]),
        ({"mask": MaskConfig(strategy="span", fraction=0.2)}, ["mask.fraction", "mask.strategy"]),
        ({"optim": OptimConfig(betas=(0.9, 0.98))}, ["optim.betas"]),
        ({"objective": ObjectiveConfig(layer_map=[1, 2])}, ["objective.layer_map"]),
        ({"eval": EvalConfig(rows=2)}, ["eval.rows"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_run_computes_may_not_change_and_how_it_is_executed_may(change, keys):
    old = Config(run_dir="run")
    saved = yaml.safe_load(to_yaml(old))
    changed = changed_keys(saved, dataclasses.replace(old, **change))
    assert [line.split(":")[0] for line in changed] == keys
    assert all(re.fullmatch(r"[\w.]+: .+ -> .+", line) for line in changed)


def test_a_run_goes_on_with_the_algorithm_versions_it_began_with(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Newer(AlgorithmsConfig):
        order: int = 3

    monkeypatch.setattr("fitb.config.yaml.AlgorithmsConfig", Newer)
    new = Config("run", algorithms=Newer())
    assert new.algorithms == Newer(order=3)
    for saved, began in (
        ({}, Newer(order=1, masks=1, attention=1, norm=1)),
        ({"algorithms": {"order": 2}}, Newer(order=2, masks=1, attention=1, norm=1)),
        (dataclasses.asdict(new), new.algorithms),
    ):
        went_on = with_algorithms_of(saved, new)
        assert went_on == dataclasses.replace(new, algorithms=began)
        assert changed_keys(yaml.safe_load(to_yaml(went_on)), went_on) == []


@pytest.mark.parametrize(
    ("versions", "said"), [({"order": 2}, "order=2"), ({"packing": 1}, "packing")]
)
def test_algorithms_of_a_later_fitb_are_refused_by_name(versions, said):
    with pytest.raises(ConfigError, match=said):
        with_algorithms_of({"algorithms": versions}, Config("run"))


def test_a_teacher_that_appears_or_changes_its_kind_is_named():
    old = Config(run_dir="run", model=ModelConfig(teacher=Geometry(2, 8, 8, 2)))
    changed = changed_keys(
        yaml.safe_load(to_yaml(old)), Config(run_dir="run", model=ModelConfig(teacher="folder"))
    )
    assert "model.teacher: None -> folder" in changed
    assert "model.teacher.hidden_size: 8 -> None" in changed


@pytest.mark.parametrize("world_size", range(1, 17))
def test_every_micro_batch_has_a_row_and_no_more_than_it_may(world_size):
    """Shares are cut as fitb.data.stream and the engine cut them; the same number on each rank."""
    refused = 0
    for global_batch, micro_batch in itertools.product(range(1, 50), range(1, 9)):
        config = Config(run_dir="run", global_batch=global_batch, micro_batch=micro_batch)
        least, most = global_batch // world_size, -(-global_batch // world_size)
        try:
            number = config.grad_accum(world_size)
        except ConfigError as error:
            assert f"global_batch={global_batch} over {world_size} processes" in str(error)
            assert least == 0 or micro_batch == 1 < most
            if least:  # what the error offers works
                offered = int(re.search(r"use micro_batch=(\d+)", str(error))[1])
                dataclasses.replace(config, micro_batch=offered).grad_accum(world_size)
            refused += 1
            continue
        for share in {least, most}:
            sizes = [share * (i + 1) // number - share * i // number for i in range(number)]
            assert sum(sizes) == share and min(sizes) >= 1 and max(sizes) <= micro_batch
        assert number == -(-most // micro_batch)
    assert refused > 0 or world_size == 1


@pytest.mark.parametrize("key", DROPPED)
def test_a_key_of_an_earlier_version_is_read_without_effect(key, tmp_path):
    section, name = key.split(".")
    path = tmp_path / "config.yaml"
    path.write_text(f"run_dir: run\n{section}:\n  {name}: true\n")
    for flags in (["--config", str(path)], ["--run_dir=run", f"--{key}=true"]):
        assert parse(Config, "fitb train", flags) == Config("run")
