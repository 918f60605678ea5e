"""What the benchmark of a step counts and reports; nothing here depends on how fast it was."""

from __future__ import annotations

import pytest
import torch

from fitb.base.errors import ConfigError
from fitb.bench import step
from fitb.bench.bench_config import (
    CommBenchConfig,
    DataBenchConfig,
    InferBenchConfig,
    StepBenchConfig,
)
from fitb.bench.parts import Timeline
from fitb.bench.step import _figures, _parts, _switches, _variants
from fitb.config import Config

CPU = torch.device("cpu")


def test_a_part_inside_another_has_its_own_time_and_all_of_them_are_the_whole(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def pass_s(seconds):
        now[0] += seconds

    timeline = Timeline(CPU)
    with timeline.part("outer"):
        pass_s(2)
        with timeline.part("inner"):
            pass_s(3)
            timeline.switch("renamed")
            pass_s(4)
        pass_s(1)
    pass_s(5)
    assert timeline.seconds() == {"other": 5, "outer": 3, "inner": 3, "renamed": 4}


def test_ratios_are_of_turns_that_stood_side_by_side():
    times = {"fitb": [1.0, 2.0, 4.0], "plain": [3.0, 8.0, 8.0], "compile": [2.0, 2.0, 2.0]}
    found = _figures(times, tokens=800)
    assert found["tokens_per_s"]["median"] == 400
    assert found["baseline_tokens_per_s"]["median"] == 100
    assert found["ratio"] == {"median": 3.0, "low": 2.0, "high": 4.0, "runs": 3}
    assert found["switched"]["compile"]["median"] == 1.0


def test_parts_are_medians_and_are_held_against_steps_that_nobody_watched():
    parts = [{"teacher": 1.0, "data_wait": 0.2}, {"teacher": 3.0}, {"teacher": 2.0}]
    found = _parts(parts, [1.0, 3.0, 4.0])
    assert found["parts_s"] == {"data_wait": 0.0, "teacher": 2.0}
    assert found["parts_over_step"] == {"median": 1.0, "low": 0.5, "high": 1.2, "runs": 3}


def test_every_switch_is_turned_alone_and_the_unfused_baseline_has_them_all_off():
    config = StepBenchConfig(baseline=True, switches=True, grad_accum=2, precision="bf16")
    run = Config(run_dir="", precision="bf16", micro_batch=32, global_batch=64)
    variants = _variants(config, run, CPU)
    baseline, is_unfused = variants["plain"]
    assert is_unfused and baseline.speed.attention == "eager"
    assert not any((baseline.speed.compile, baseline.speed.pad, baseline.speed.pack_teacher))
    switches = dict(_switches(config, run, CPU))
    everywhere = {"attention", "compile", "pad", "fused_optimizer", "teacher_rows"}
    assert set(switches) == everywhere | {"pack_teacher"}
    assert set(dict(_switches(config, run, torch.device("cuda")))) == everywhere | {"cuda_graphs"}
    for name, changes in switches.items():
        assert list(changes) == [name]
        assert variants[name][0].speed != run.speed


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((StepBenchConfig, name, value) for name, value in (("length", 0), ("steps", -1))),
        *((InferBenchConfig, name, []) for name in ("batches", "scorer_batches")),
        *((InferBenchConfig, name, 0) for name in ("repeats", "load_s")),
        *((CommBenchConfig, name, value) for name, value in (("mb", []), ("processes", 0))),
        (DataBenchConfig, "mb", 0.5),
    ],
)
def test_a_number_out_of_its_range_is_refused(kind, name, value):
    with pytest.raises(ConfigError, match=f"^{name}="):
        kind(**{name: value})


def test_shards_of_another_length_are_refused_with_the_one_they_have(shard_set):
    with pytest.raises(ConfigError, match="--length 32"):
        step.bench(StepBenchConfig(length=128, shards=str(shard_set)))
