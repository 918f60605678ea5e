"""What a configuration leaves to the machine: precision and micro-batch."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fitb.config import DataConfig
from fitb.config.yaml import to_yaml
from fitb.training import defaults
from fitb.training.defaults import fastest_precision, resolved, rows_at_once

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    def have(capability=(9, 0), gigabytes=141):
        about = SimpleNamespace(total_memory=int(gigabytes * 1e9))
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: about)

    have()
    return have


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((6, 1), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")],
)
def test_a_gpu_takes_the_precision_that_it_is_made_for(gpu, capability, precision):
    gpu(capability)
    assert fastest_precision(GPU) == precision


@pytest.mark.parametrize(
    ("cpu", "precision"),
    [
        ("flags: avx512_bf16 amx_bf16", "bf16"),
        ("vendor_id: AuthenticAMD\nflags: avx512_bf16", "bf16"),
        ("vendor_id: GenuineIntel\nflags: avx512_bf16", "fp32"),
        ("vendor_id: AuthenticAMD\nflags: avx2", "fp32"),
    ],
)
def test_a_cpu_takes_bf16_only_where_that_was_measured_to_be_faster(
    monkeypatch, tmp_path, cpu, precision
):
    (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(defaults, "CPUINFO", tmp_path / "cpuinfo")
    assert fastest_precision(CPU) == precision
    monkeypatch.setattr(defaults, "CPUINFO", tmp_path / "none")
    assert fastest_precision(CPU) == "fp32"


def test_a_gpu_is_given_many_tokens_at_once_and_a_small_one_fewer(gpu, shards):
    length = 64  # of these shards
    data = DataConfig(shards=str(shards))
    assert rows_at_once(GPU, data) == 32_768 // length
    gpu(gigabytes=16)
    assert rows_at_once(GPU, data) == 8_192 // length
    assert rows_at_once(CPU, DataConfig(shards="none")) == 32


def test_what_is_asked_for_is_taken_and_a_run_that_goes_on_keeps_its_own(gpu, run_config, tmp_path):
    run = tmp_path / "run"
    left = run_config(run_dir=str(run), precision="auto", micro_batch=None)
    asked = replace(left, precision="fp32", micro_batch=7)
    assert resolved(asked, GPU) == asked
    first = resolved(left, CPU)
    assert first.micro_batch == 32 and first.precision in ("fp32", "bf16")

    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(replace(left, precision="fp16", micro_batch=5)))
    assert resolved(left, CPU) == first  # no step was made
    (run / "checkpoints" / "step-0000001").mkdir(parents=True)
    assert (resolved(left, GPU).precision, resolved(left, GPU).micro_batch) == ("fp16", 5)
    assert resolved(asked, GPU) == asked
