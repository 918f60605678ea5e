"""The benchmarks as commands: what they print is complete, whatever the speed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fitb import cli
from fitb.config import Geometry
from tests.benchmarks import resume

Bench = Callable[[str, str], dict[str, Any]]
SMALL = (
    "--length 64 --micro_batch 4 --grad_accum 2 --repeats 1 --steps 2 --precision fp32"
    " --student.hidden_size 24 --student.num_hidden_layers 2 --student.intermediate_size 48"
    " --student.num_attention_heads 2 --teacher.hidden_size 48 --teacher.num_hidden_layers 4"
    " --teacher.intermediate_size 96 --teacher.num_attention_heads 2"
)


@pytest.fixture
def bench(capsys):
    """Run a benchmark in this process, so that its ranks are forked."""

    def run(what, flags):
        assert cli.main(["bench", what, *flags.split(), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_a_step_is_measured_beside_the_unfused_baseline_with_equal_losses(bench, shards):
    row = bench("step", f"{SMALL} --baseline --processes 2 --shards {shards}")
    assert row["processes"] == 2
    for name in ("tokens_per_s", "baseline_tokens_per_s", "ratio"):
        assert row[name]["median"] > 0
    assert 0 < row["mfu"] < 1
    assert row["peak_memory_gb"] > 0
    assert row["loss"]["fitb"] == pytest.approx(row["loss"]["plain"], rel=1e-5)
    expected = {"teacher", "student_forward", "student_backward", "losses", "optimiser"}
    assert expected | {"data_wait", "communication"} <= set(row["parts_s"])
    assert row["parts_s"]["communication"] > 0
    assert {"commit", "date", "cpu", "cores", "torch"} <= set(row)


def test_collectives_are_measured_between_processes(bench):
    row = bench("comm", "--mb [0.1] --repeats 2 --precision bf16")
    assert row["latency_us"]["median"] > 0
    assert set(row["0.1_mb"]) == {"all_reduce", "all_gather", "reduce_scatter"}


def test_leaving_and_coming_back_are_measured_with_their_parts(shards):
    row = resume.bench(
        *("fp32", 64),
        processes=1,
        repeats=1,
        shards=str(shards),
        teacher=Geometry(4, 48, 96, 2),
        student=Geometry(2, 24, 48, 2),
    )
    for whole in ("signal_to_committed", "start_to_first_step"):
        parts = [row[key]["median"] for key in row if key.startswith(f"{whole}.")]
        assert len(parts) == 3 and min(parts) >= 0
        assert row[f"{whole}_s"]["median"] > 0
    assert row["checkpoint_mb"] > 0.1


def test_filling_is_measured_beside_the_pipeline_a_teacher_onnxruntime_and_under_load(bench):
    row = bench(
        "infer",
        "--texts 4 --batches [2] --repeats 1 --model.hidden_size 24 --model.num_hidden_layers 1"
        " --model.intermediate_size 48 --model.num_attention_heads 2"
        " --teacher.hidden_size 48 --teacher.num_hidden_layers 2 --teacher.intermediate_size 96"
        " --teacher.num_attention_heads 2 --scorer_batches [1,3]"
        " --clients 3 --load_s 0.5 --server_threads 1",
    )
    assert row["batch_2"]["texts_per_s"]["median"] > 0
    assert row["batch_2"]["pipeline_texts_per_s"]["median"] > 0
    for ratio in ("student_over_teacher", "onnx_over_torch", "int8_over_torch"):
        assert row[ratio]["median"] > 0 and row[ratio]["runs"] == 1
    assert row["logits_batch_3"]["onnx_over_torch"]["median"] > 0
    assert "teacher_ms" not in row["logits_batch_3"]
    assert row["failures"] == 0 and row["server_over_serial"]["median"] > 0
    assert 0 < row["p50_ms"]["median"] <= row["p99_ms"]["median"]
