"""Precisions agree, the loss scale recovers, and the host asks the device for nothing.

fp16 is computed in software here (in_fp16.py): the same numbers as in hardware, slowly.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import job
import pytest
from small import flags_of

from fitb.config.parser import resolve_resource

STEPS = 40
BANDS = {"fp16": 1e-3, "bf16": 5e-3}  # of the loss at every step, relative to fp32
NAMES = ("train/loss", "student/loss_mlm", "distill/total", "distill/logits")
OVERFLOWING_POWER = 24  # this student's gradients overflow down to a scale of 2 ** 16


def zero2_with_scale(folder, power):
    """ds_configs/zero2.json with another first loss scale."""
    settings = json.loads(resolve_resource("zero2", "fitb.ds_configs", ".json").read_text())
    settings["fp16"]["initial_scale_power"] = power
    path = folder / f"scale_{power}.json"
    path.write_text(json.dumps(settings))
    return str(path)


@pytest.fixture(scope="module")
def flags(quick_flags):
    """A run of one process."""
    more = {"steps": STEPS, "optim.lr": 2e-3, "eval.every_steps": 0, "checkpoint.every_steps": 0}
    return [*quick_flags, *flags_of(more)]


@pytest.fixture(scope="module")
def curves(flags, tmp_path_factory):
    """The same run in each precision; in fp16 from a scale at which nothing overflows."""
    folder = tmp_path_factory.mktemp("precisions")
    low = ["--ds_config", zero2_with_scale(folder, 8)]
    for precision in ("fp32", "bf16", "fp16"):
        run = [*flags, *low, "--precision", precision]
        assert job.run(run, folder / precision, 1, program=job.IN_FP16) == 0
    return {precision: folder / precision for precision in ("fp32", "bf16", "fp16")}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_curve_of_a_half_precision_is_that_of_fp32_within_its_band(curves, precision):
    exact, half = job.metrics(curves["fp32"]), job.metrics(curves[precision])
    assert [m["train/step"] for m in half] == list(range(1, STEPS + 1))
    assert exact[-1]["train/loss"] < 0.95 * exact[0]["train/loss"]  # it learns
    for ours, theirs in zip(half, exact, strict=True):
        assert ours["optim/skipped_steps"] == 0
        for name in NAMES:
            assert ours[name] == pytest.approx(theirs[name], rel=BANDS[precision]), name


@pytest.fixture(scope="module")
def overflowed(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("overflow")
    planted = [*flags, "--precision", "fp16"]
    planted += ["--ds_config", zero2_with_scale(folder, OVERFLOWING_POWER)]
    assert job.run(planted, folder / "run", 1, program=job.IN_FP16) == 0
    return planted, folder / "run"


def test_the_loss_scale_recovers_from_a_planted_overflow(overflowed):
    metrics = job.metrics(overflowed[1])
    scales = [m["optim/loss_scale"] for m in metrics]
    skipped = metrics[-1]["optim/skipped_steps"]
    assert 4 <= skipped < STEPS // 2
    assert scales[0] == 2**OVERFLOWING_POWER and scales[-1] < 2 ** (OVERFLOWING_POWER - 3)
    assert all(later <= earlier for earlier, later in zip(scales, scales[1:], strict=False))
    assert [m["train/step"] for m in metrics if "optim/grad_norm" not in m] == list(
        range(1, skipped + 1)
    )
    assert metrics[-1]["train/loss"] < 0.95 * metrics[0]["train/loss"]
    manifest = json.loads((job.newest(overflowed[1]) / "manifest.json").read_text())
    assert manifest["optimizer"]["optimizer_steps"] == STEPS - skipped


def test_skipped_steps_move_neither_data_nor_schedule_out_of_line(overflowed, curves):
    in_line = ("train/step", "optim/lr", "mask/coverage", "mask/slots_per_row_variance")
    for ours, theirs in zip(job.metrics(overflowed[1]), job.metrics(curves["fp32"]), strict=True):
        assert [ours[name] for name in in_line] == [theirs[name] for name in in_line]


def test_fp16_resumes_bitwise_with_its_loss_scale(overflowed, tmp_path):
    flags, whole = overflowed
    run = tmp_path / "run"
    stopped = job.run_and_signal(
        flags, run, signal.SIGUSR1, at_step=5, rank=0, size=1, program=job.IN_FP16
    )
    assert stopped == 85
    assert job.run(flags, run, 1, program=job.IN_FP16) == 0
    job.assert_same(whole, run)


COUNT = """
import contextlib, json, sys
import in_fp16
import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from fitb.config import Geometry
from fitb.bench.bench_config import StepBenchConfig
from fitb.bench.step import Variant, start
from fitb.base.world import World

class Asked(TorchDispatchMode):
    '''Counts what a GPU would be waited for: .item(), float(), bool() of a tensor, and others.'''
    times = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        Asked.times += function in WAITING
        return function(*args, **(kwargs or {}))

WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

def wait(*_):
    Asked.times += 1

class Stream(contextlib.nullcontext):
    synchronize = staticmethod(wait)

    def nothing(self, *_):
        pass

    def query(self):
        return True

    wait_stream = wait_event = record_event = record = nothing

def stream(*_, **__):
    return Stream()

# What DeepSpeed asks of a GPU, of which only waits matter here.
gpu = type(get_accelerator())
gpu.synchronize = wait
gpu.resolves_data_dependency = gpu.is_synchronized_device = lambda self: False
gpu.Stream = gpu.Event = property(lambda self: stream)
gpu.stream = gpu.current_stream = gpu.default_stream = stream
torch.Tensor.record_stream = lambda self, stream: None
for name in ("cpu", "tolist", "numpy"):
    def waited(self, *args, call=getattr(torch.Tensor, name)):
        wait()
        return call(self, *args)
    setattr(torch.Tensor, name, waited)

found = {}
KINDS = "zero2 bf16, zero2 fp16, zero3 bf16"
for kind in KINDS.split(", "):
    stage, precision = kind.split()
    config = StepBenchConfig(precision, 64, micro_batch=2, grad_accum=4, shards=sys.argv[1],
                             ds_config=stage,
                             teacher=Geometry(4, 64, 128, 4), student=Geometry(2, 32, 64, 4))
    device, run = start(config, World())
    variant = Variant(run, False, World(), device)
    variant.seconds(3)  # some of DeepSpeed's timers start late
    step, batch = next(variant.rows)
    counts = variant.engine.counts(batch)
    before = Asked.times
    with Asked():
        variant.engine.train_step(step, batch, counts)
    found[kind] = Asked.times - before
print(json.dumps(found))
"""


def test_a_step_of_four_micro_batches_waits_for_the_device_at_most_once(shards):
    """Not at all in bf16, nor in fp32; in fp16 DeepSpeed asks whether a gradient overflowed.

    That is ZeRO 2, the default; ZeRO 3 is what docs/design.md says of it. DeepSpeed takes
    its branch for GPUs here, with streams that only count who waits for them.
    """
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(shards)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=job.TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"zero2 bf16": 0, "zero2 fp16": 1, "zero3 bf16": 4 + 2}
