"""One typed definition: what it accepts, what it refuses and in which words."""

import dataclasses
import itertools
import json
import math
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from fitb.config import (
    DROPPED,
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
from fitb.config_io import changed_keys, flatten, to_yaml, with_algorithms_of
from fitb.errors import ConfigError
from fitb.flags import parse, parser_for, preset_names, resolve_resource

REJECTED: list[tuple[type[Any], dict[str, Any], str]] = [
    (Geometry, {"hidden_size": 313}, "hidden_size=313"),
    (Geometry, {"num_attention_heads": 0}, "num_attention_heads=0"),
    (Geometry, {"num_hidden_layers": 0}, "num_hidden_layers=0"),
    (DataConfig, {"window_shards": 0}, "window_shards=0"),
    (DataConfig, {"prefetch_steps": -1}, "prefetch_steps=-1"),
    (DataConfig, {"cache_gb": -0.5}, "cache_gb=-0.5"),
    (DataConfig, {"cache_gb": math.nan}, "cache_gb=nan"),
    (DataConfig, {"fetch_deadline_s": -1.0}, "fetch_deadline_s=-1.0"),
    (MaskConfig, {"fraction": 0.0}, "fraction=0"),
    (MaskConfig, {"fraction": 1.0}, "fraction=1"),
    (MaskConfig, {"fraction": float("nan")}, "fraction=nan"),
    (MaskConfig, {"mask_share": -0.1}, "mask_share=-0.1"),
    (MaskConfig, {"random_share": -0.1}, "random_share=-0.1"),
    (MaskConfig, {"mask_share": 0.8, "random_share": 0.3}, "their sum at most 1"),
    (MaskConfig, {"span_p": 0.0}, "span_p=0"),
    (MaskConfig, {"span_p": 1.1}, "span_p=1.1"),
    (MaskConfig, {"span_max_words": 0}, "span_max_words=0"),
    (ObjectiveConfig, {"hidden": -1.0}, "none below 0"),
    (ObjectiveConfig, {"mlm": float("nan")}, "nan"),
    (ObjectiveConfig, dict.fromkeys(("embedding", "hidden", "attention", "logits", "mlm"), 0.0),
     "at least one term"),
    (ObjectiveConfig, {"temperature": 0.0}, "temperature=0"),
    (OptimConfig, {"lr": -1e-4}, "lr=-0.0001"),
    (OptimConfig, {"warmup_steps": -1}, "warmup_steps=-1"),
    (OptimConfig, {"betas": (0.9, 1.0)}, "betas"),
    (OptimConfig, {"eps": -1.0}, "eps=-1"),
    (OptimConfig, {"clip_norm": -1.0}, "clip_norm=-1"),
    (OptimConfig, {"weight_decay": -0.1}, "weight_decay=-0.1"),
    (EvalConfig, {"rows": -4}, "rows=-4"),
    (EvalConfig, {"every_steps": -1}, "every_steps=-1"),
    (EvalConfig, {"patience": -1}, "patience=-1"),
    (CheckpointConfig, {"keep_last": 1}, "keep_last=1"),
    (CheckpointConfig, {"every_steps": -1}, "every_steps=-1"),
    (TrackConfig, {"every_steps": 0}, "every_steps=0"),
    (SpeedConfig, {"teacher_rows": 0}, "teacher_rows=0"),
    (StopConfig, {"time_budget_min": -5.0}, "time_budget_min=-5"),
    (ModelConfig, {"dropout": 7.0}, "dropout=7"),
    (Config, {"run_dir": "r", "steps": 0}, "steps=0"),
    (Config, {"run_dir": "r", "global_batch": 0}, "global_batch=0"),
    (Config, {"run_dir": "r", "micro_batch": -2}, "micro_batch=-2"),
]  # fmt: skip


def parsed(*flags: str) -> Config:
    return parse(Config, "fitb train", ["--run_dir", "run", *flags])


@pytest.mark.parametrize("section", [field.name for field in dataclasses.fields(Config)][7:])
def test_the_defaults_of_every_section_are_accepted(section):
    kind = type(getattr(Config(run_dir="run"), section))
    assert kind() == getattr(parsed(), section)


@pytest.mark.parametrize(
    ("kind", "values", "said"), REJECTED, ids=[f"{k.__name__}-{v}" for k, v, _ in REJECTED]
)
def test_a_value_out_of_range_is_refused_with_its_name(kind, values, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        kind(**values)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mask.fraction", "0"], "mask.fraction=0"),
        (["--steps", "0"], "steps=0"),
        (["--steps", "many"], "steps"),
        (["--mask.strategy", "words"], "whole_word"),
        (["--seed", "3.5"], "seed"),
        (["--steps"], "steps"),
        (["--model.student.hidden_size", "313"], "hidden_size=313 is not a multiple"),
        (["--model.teacher", "{hidden_size: 313}"], "hidden_size=313 is not a multiple"),
    ],
    ids=str,
)
def test_a_flag_with_a_wrong_value_is_a_config_error_that_names_it(flags, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        parsed(*flags)


def test_a_run_without_a_folder_is_told_to_name_one():
    with pytest.raises(ConfigError, match="run_dir"):
        parse(Config, "fitb train", [])


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--optim.lrr", "optim.lr"),
        ("--stepz", "steps"),
        ("--mask.strategie", "mask.strategy"),
        ("--data.shard", "data.shards"),
        ("--objective.layermap", "objective.layer_map"),
        ("--model.student.num_hidden_layer", "model.student.num_hidden_layers"),
    ],
)
def test_an_unknown_flag_names_the_nearest_and_is_never_guessed(flag, nearest):
    with pytest.raises(ConfigError, match=rf"nearest: {re.escape(nearest)}\)"):
        parsed(flag, "1")


@pytest.mark.parametrize("key", DROPPED)
def test_a_key_of_an_earlier_version_is_read_without_effect(key, tmp_path):
    section, name = key.split(".")
    path = tmp_path / "config.yaml"
    path.write_text(f"run_dir: run\n{section}:\n  {name}: true\n")
    for flags in (["--config", str(path)], ["--run_dir=run", f"--{key}=true"]):
        assert parse(Config, "fitb train", flags) == Config("run")


@pytest.mark.parametrize("flag", ["--optim.l", "--optim.warmup", "--global", "--see"])
def test_the_beginning_of_a_flag_is_not_taken_for_the_flag(flag):
    with pytest.raises(ConfigError, match="unknown key"):
        parsed(flag, "3")


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("stepz: 1\n", "steps"),
        ("optim: {lrr: 1}\n", "optim.lr"),
        ("mask: {strategies: token}\n", "mask.strategy"),
        ("model: {student: {num_hidden_layer: 4}}\n", "model.student.num_hidden_layers"),
    ],
)
def test_an_unknown_key_of_a_file_names_the_nearest(tmp_path, text, nearest):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    for flags in (["--config", str(path)], [f"--config={path}"]):
        with pytest.raises(ConfigError, match=rf"nearest: {re.escape(nearest)}\)"):
            parsed(*flags)


@pytest.mark.parametrize("text", ["optim: [1\n", "- 1\n", "steps: {a: 1}\n"])
def test_a_file_that_is_no_configuration_is_a_config_error(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        parsed("--config", str(path))


def test_a_flag_after_a_file_wins_over_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("steps: 7\noptim: {lr: 0.5}\nseed: 3\n")
    config = parsed("--config", str(path), "--optim.lr", "1e-4")
    assert (config.steps, config.optim.lr, config.seed) == (7, 1e-4, 3)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses_and_reads_back_from_what_a_run_saves(tmp_path, name):
    config = parsed("--config", name)
    assert config == parsed(f"--config={name}")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert parse(Config, "fitb train", ["--config", str(path)]) == config
    assert changed_keys(yaml.safe_load(path.read_text()), config) == []


def test_the_presets_of_the_design_are_there():
    assert {"tinybert4", "tinybert6", "finetune", "tinybert-reference"} <= set(preset_names())


def test_a_configuration_far_from_the_defaults_reads_back_the_same(tmp_path):
    config = Config(
        run_dir="runs/caf\u00e9: 1",
        precision="bf16",
        seed=-3,
        model=ModelConfig(teacher=Geometry(2, 8, 16, 2), student="on", dropout=0.0),
        objective=ObjectiveConfig(layer_map=[3, 1], temperature=1e-7, form="tinybert_reference"),
        optim=OptimConfig(lr=1e-300, betas=(0.5, 0.75), eps=1e-12),
        stop=StopConfig(time_budget_min=0.1),
        track=TrackConfig(entity="team", name="12:30:00"),
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert parse(Config, "fitb train", ["--config", str(path)]) == config


def test_a_name_that_looks_like_a_number_reads_back_as_a_name(tmp_path):
    """Hashes do: 1e5, 12e4567."""
    path = tmp_path / "config.yaml"
    for name in ("007", "1e5", "12e4567", "1_0", "0x1f", ".5", "true"):
        config = Config(run_dir=name)
        path.write_text(to_yaml(config))
        assert parse(Config, "fitb train", ["--config", str(path)]) == config


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match=r"nearest: tinybert6\)"):
        parsed("--config", "tinybert66")


def test_a_folder_with_the_name_of_a_preset_does_not_hide_it(tmp_path, monkeypatch):
    """A run folder is easily named after its preset."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinybert4").mkdir()
    (tmp_path / "zero2").mkdir()
    assert resolve_resource("tinybert4", "fitb.presets", ".yaml").is_file()
    assert resolve_resource("zero2", "fitb.ds_configs", ".json").is_file()


def test_a_file_wins_over_a_preset_and_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinybert4").write_text("steps: 3\n")
    assert parsed("--config", "tinybert4").steps == 3


def test_flatten_gives_dotted_keys():
    flat = flatten(Config(run_dir="run", model=ModelConfig(student="folder")))
    assert flat["optim.betas"] == [0.9, 0.999]
    assert flat["model.student"] == "folder"
    assert flat["steps"] == 100_000
    assert "optim" not in flat


@pytest.mark.parametrize(
    "change",
    [
        {"run_dir": "elsewhere"},
        {"micro_batch": 1},
        {"precision": "bf16"},
        {"ds_config": "zero1"},
        {"data": DataConfig(shards="elsewhere", prefetch_steps=0)},
        {"data": DataConfig(cache_dir="elsewhere", cache_gb=1.0, fetch_deadline_s=9.0)},
        {"track": TrackConfig(every_steps=1, wandb="disabled", name="other")},
        {"checkpoint": CheckpointConfig(every_steps=1, keep_last=5)},
        {"stop": StopConfig(time_budget_min=1.0)},
    ],
    ids=str,
)
def test_how_a_run_is_executed_may_change(change):
    old = Config(run_dir="run")
    assert changed_keys(dataclasses.asdict(old), dataclasses.replace(old, **change)) == []


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"steps": 5}, ["steps"]),
        ({"seed": 1}, ["seed"]),
        ({"global_batch": 128}, ["global_batch"]),
        ({"data": DataConfig(window_shards=1)}, ["data.window_shards"]),
        ({"mask": MaskConfig(strategy="span", fraction=0.2)}, ["mask.fraction", "mask.strategy"]),
        ({"optim": OptimConfig(betas=(0.9, 0.98))}, ["optim.betas"]),
        ({"objective": ObjectiveConfig(layer_map=[1, 2])}, ["objective.layer_map"]),
        ({"eval": EvalConfig(rows=2)}, ["eval.rows"]),
    ],
    ids=str,
)
def test_what_a_run_computes_may_not_change_and_is_named(change, keys):
    old = Config(run_dir="run")
    saved = yaml.safe_load(to_yaml(old))
    changed = changed_keys(saved, dataclasses.replace(old, **change))
    assert [line.split(":")[0] for line in changed] == keys
    for line in changed:
        assert re.fullmatch(r"[\w.]+: .+ -> .+", line)


def test_a_run_goes_on_with_the_algorithm_versions_it_began_with(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Newer(AlgorithmsConfig):
        order: int = 3

    monkeypatch.setattr("fitb.config_io.AlgorithmsConfig", Newer)
    new = Config("run", algorithms=Newer())
    assert new.algorithms == Newer(order=3)
    for saved, began in (
        ({}, Newer(order=1, masks=1, norm=1)),
        ({"algorithms": {"order": 2}}, Newer(order=2, masks=1, norm=1)),
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
            assert least == 0 or micro_batch == 1 < most
            assert f"global_batch={global_batch} over {world_size} processes" in str(error)
            refused += 1
            continue
        for share in {least, most}:
            sizes = [share * (i + 1) // number - share * i // number for i in range(number)]
            assert sum(sizes) == share and min(sizes) >= 1 and max(sizes) <= micro_batch
        assert number == -(-most // micro_batch)
    assert refused > 0 or world_size == 1


@pytest.mark.parametrize("global_batch", [6, 7, 48, 100, 256])
def test_what_the_error_about_an_empty_micro_batch_offers_works(global_batch):
    offered = set()
    for world_size in range(1, 2 * global_batch, 3):
        config = Config(run_dir="run", global_batch=global_batch, micro_batch=1)
        try:
            config.grad_accum(world_size)
        except ConfigError as error:
            if "use fewer processes" in str(error):
                assert world_size > global_batch
                offered.add("processes")
            else:
                better = int(re.search(r"use micro_batch=(\d+)", str(error))[1])
                assert better == 2
                dataclasses.replace(config, micro_batch=better).grad_accum(world_size)
                offered.add("micro_batch")
    assert offered == {"processes", "micro_batch"}


SILENT = (
    "fitb",
    "fitb.errors",
    "fitb.world",
    "fitb.rng",
    "fitb.fsio",
    "fitb.log",
    "fitb.config",
    "fitb.flags",
    "fitb.cli",
    "fitb.cluster",
    "fitb.cluster.local",
    "fitb.rundir.restart",
    "fitb.cluster.slurm",
    "fitb.cluster.submit",
)
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "wandb", "tokenizers", "pyarrow")


def test_importing_the_light_modules_is_silent_and_imports_no_torch():
    code = f"""
import importlib, sys
for name in {SILENT}:
    importlib.import_module(name)
    heavy = [m for m in {HEAVY} if m in sys.modules]
    assert not heavy, (name, heavy)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("flags", [["--help"], ["train", "--help"], ["--version"]])
def test_help_comes_without_torch(flags):
    code = f"""
import json, sys
from fitb.cli import main
try:
    code = main({flags})
except SystemExit as exit:
    code = exit.code
print(json.dumps([code, [m for m in {HEAVY} if m in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, last = done.stdout.splitlines()
    assert text
    assert json.loads(last) in ([0, []], [None, []])


def test_the_help_of_a_run_explains_every_key():
    parser = parser_for(Config, "fitb train")
    text = parser.format_help()
    for key in flatten(Config(run_dir="run")):
        if not key.startswith("model.student."):
            assert f"--{key} " in text, key
