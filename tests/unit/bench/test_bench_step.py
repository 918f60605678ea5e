"""What the benchmarks of a step count and report; nothing here depends on how fast it was."""

from __future__ import annotations

import json
import time

import pytest
import torch

from fitb.bench import attention, step
from fitb.bench.attention import plain_attention_loss
from fitb.bench.parts import Timeline
from fitb.bench.step import _figures, _parts, _switches, _ways
from fitb.cli import main
from fitb.config import Config
from fitb.distill.attention import attention_loss
from fitb.errors import ConfigError

CPU = torch.device("cpu")


def test_a_part_inside_another_has_its_own_time_and_all_of_them_are_the_whole() -> None:
    begin_s = time.perf_counter()
    timeline = Timeline(CPU)
    with timeline.part("outer"):
        time.sleep(0.02)
        with timeline.part("inner"):
            time.sleep(0.03)
            timeline.switch("renamed")
            time.sleep(0.04)
        time.sleep(0.01)
    seconds = timeline.seconds()
    whole_s = time.perf_counter() - begin_s
    assert set(seconds) == {"other", "outer", "inner", "renamed"}
    assert seconds["outer"] >= 0.03
    assert 0.03 <= seconds["inner"] < 0.07 <= seconds["inner"] + seconds["renamed"]
    assert sum(seconds.values()) == pytest.approx(whole_s, abs=0.005)


def test_ratios_are_of_turns_that_stood_side_by_side() -> None:
    times = {"fitb": [1.0, 2.0, 4.0], "plain": [3.0, 8.0, 8.0], "compile": [2.0, 2.0, 2.0]}
    found = _figures(times, tokens=800)
    assert found["tokens_per_s"]["median"] == 400
    assert found["baseline_tokens_per_s"]["median"] == 100
    assert found["ratio"] == {"median": 3.0, "low": 2.0, "high": 4.0, "runs": 3}
    assert found["switched"]["compile"]["median"] == 1.0


def test_parts_are_medians_and_are_held_against_steps_that_nobody_watched() -> None:
    parts = [{"teacher": 1.0, "data_wait": 0.2}, {"teacher": 3.0}, {"teacher": 2.0}]
    found = _parts(parts, [1.0, 3.0, 4.0])
    assert found["parts_s"] == {"data_wait": 0.0, "teacher": 2.0}
    assert found["parts_over_step"] == {"median": 1.0, "low": 0.5, "high": 1.2, "runs": 3}


def test_every_switch_is_turned_alone_and_the_plain_way_has_them_all_off() -> None:
    config = step.BenchConfig(baseline=True, switches=True, grad_accum=2, precision="bf16")
    run = Config(run_dir="", precision="bf16", micro_batch=32, global_batch=64)
    ways = _ways(config, run, CPU)
    plain, is_plain = ways["plain"]
    assert is_plain
    assert not any((plain.speed.compile, plain.speed.pack_teacher))
    assert plain.speed.attention == "eager"
    for name, changes in _switches(config, CPU):
        assert list(changes) == [name]
        assert ways[name][0].speed != run.speed
    expected = {"attention", "compile", "pad", "fused_optimizer", "teacher_rows"}
    assert {name for name, _ in _switches(config, CPU)} == expected | {"pack_teacher"}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (step.BenchConfig, {"length": 0}),
        (step.BenchConfig, {"steps": -1}),
        (attention.BenchConfig, {"lengths": []}),
        (attention.BenchConfig, {"rows": 0}),
    ],
)
def test_a_number_below_one_is_refused(kind, values) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=f"{name}="):
        kind(**values)


def test_shards_of_another_length_are_refused_with_the_one_they_have(shard_set) -> None:
    with pytest.raises(ConfigError, match="holds rows of 32; give --length 32"):
        step.bench(step.BenchConfig(length=128, shards=str(shard_set)))


def test_the_forms_of_the_attention_benchmark_have_the_same_sum() -> None:
    leaves, teacher = attention._inputs(attention.BenchConfig(precision="fp32"), 64, CPU)
    ours, plain = (
        form((leaves[0], leaves[1]), teacher, None, None)
        for form in (attention_loss, plain_attention_loss)
    )
    assert torch.allclose(ours, plain, rtol=1e-5)


def test_memory_of_the_attention_term_grows_no_faster_than_length(capsys) -> None:
    """Bytes counted by the profiler, not by the machine: from 128 to 1,024 at most 8 times."""
    flags = ["--lengths", "[128, 1024]", "--rows", "1", "--repeats", "1", "--json"]
    assert main(["bench", "attention", *flags]) == 0
    growth = json.loads(capsys.readouterr().out)["memory_growth"]["128_to_1024"]
    assert growth["length"] == 8
    assert growth["fitb"] <= 8
    assert growth["plain"] > 30  # the L x L form, which shows that the count is able to see it
