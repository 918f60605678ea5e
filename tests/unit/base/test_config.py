"""One typed definition: what it accepts, what it refuses and in which words."""

import dataclasses
import itertools
import math
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

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
from fitb.config_io import changed_keys, to_yaml, with_algorithms_of
from fitb.errors import ConfigError
from fitb.flags import parse, preset_names, resolve_resource

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


@pytest.mark.parametrize(
    ("kind", "values", "said"), REJECTED, ids=[f"{k.__name__}-{v}" for k, v, _ in REJECTED]
)
def test_a_value_out_of_range_is_refused_with_its_name(kind, values, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        kind(**values)


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


def test_a_flag_after_a_file_wins_over_it(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("steps: 7\noptim: {lr: 0.5}\nseed: 3\n")
    config = parsed("--config", str(path), "--optim.lr", "1e-4")
    assert (config.steps, config.optim.lr, config.seed) == (7, 1e-4, 3)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses_and_reads_back_from_what_a_run_saves(tmp_path, name):
    assert parsed() == Config("run")
    config = parsed("--config", name)
    assert config == parsed(f"--config={name}")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert parse(Config, "fitb train", ["--config", str(path)]) == config
    assert changed_keys(yaml.safe_load(path.read_text()), config) == []


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
    "fitb.cli.commands",
    "fitb.cli.execute",
    "fitb.cli.completion",
    "fitb.cluster",
    "fitb.cluster.local",
    "fitb.cluster.progress",
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
