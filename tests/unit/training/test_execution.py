"""What `speed` comes to on a device, and that it changes how a step is computed, not what."""

import copy
import itertools
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._inductor import config as inductor

from fitb.base.errors import ConfigError, UnfitMachine
from fitb.base.world import World
from fitb.config import ModelConfig, ObjectiveConfig, SpeedConfig
from fitb.model.packed_linear import to_float8
from fitb.objective.losses import _blocks
from fitb.objective.objective import Objective
from fitb.training.execution import Execution
from tests.unit.objective.conftest import padded_batch, tiny_bert

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WORLD = World()


@pytest.fixture
def decide(run_config):
    def make(device=CPU, length=128, zero_stage=2, precision="bf16", world=WORLD, **speed):
        config = run_config(
            precision=precision, global_batch=64, micro_batch=4, speed=SpeedConfig(**speed)
        )
        return Execution.of(config, world, device, length, zero_stage)

    return make


@pytest.mark.parametrize(
    ("device", "zero_stage", "whole", "attention", "teacher_rows"),
    [(GPU, 2, True, "sdpa", 64), (CPU, 2, False, "eager", 4), (GPU, 3, False, "sdpa", 64)],
)
def test_a_gpu_compiles_and_pads_but_under_zero_3_where_asking_for_it_is_refused(
    decide, device, zero_stage, whole, attention, teacher_rows
):
    execution = decide(device, zero_stage=zero_stage)
    assert execution.compile == execution.kernels.pad == whole
    assert (execution.kernels.attention, execution.teacher_rows) == (attention, teacher_rows)
    assert device == CPU or not execution.pack_teacher
    for name in ("compile", "pad") if zero_stage == 3 else ():
        with pytest.raises(ConfigError, match="ZeRO 3"):
            decide(zero_stage=3, **{name: True})


@pytest.mark.parametrize("length", [128, 512, 4096, 40_000])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_teachers_rows_divide_the_share_and_hold_at_most_32768_tokens(decide, length, size):
    rows = decide(GPU, length, world=World(0, size)).teacher_rows
    assert rows % 4 == 0 and (64 // size) % rows == 0
    assert rows == 4 or rows * length <= 32_768
    larger = [r for r in (8, 16, 32, 64) if rows < r <= 64 // size]
    assert all(r * length > 32_768 for r in larger)


def test_rows_asked_for_are_rounded_down_to_micro_batches_that_divide_a_step(decide):
    for wanted, taken in ((1, 4), (3, 4), (4, 4), (24, 16), (32, 32), (63, 32), (128, 64)):
        assert decide(teacher_rows=wanted).teacher_rows == taken


ROWS = padded_batch(4)
WHOLE = replace(ROWS, attention_mask=torch.ones_like(ROWS.attention_mask), padded=False)


def losses_and_gradients(execution, padded):
    student, teacher = tiny_bert(2, 20, 4, 1), tiny_bert(4, 32, 4, 2)  # heads of 5, padded to 8
    with torch.random.fork_rng():
        torch.manual_seed(3)
        objective = Objective(student, teacher, ObjectiveConfig())
    tap = objective.teacher_tap(copy.deepcopy(teacher))
    execution.prepare(objective, tap, CPU)
    rows = ROWS if padded else WHOLE
    with torch.no_grad():
        features = tap(rows)
    sums = objective(rows, features)
    gradients = torch.autograd.grad(sums.sum(), list(objective.parameters()))
    return sums.detach(), gradients


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("padded", "speed"),
    [
        *itertools.product(
            [False, True], [{"attention": "eager"}, {"pad": True}, {"pack_teacher": False}]
        ),
        (True, {"compile": True, "pad": True}),
    ],
    ids=str,
)
def test_no_switch_changes_a_loss_or_a_gradient(decide, speed, padded):
    """In fp32: each sum to 1e-5 relative, gradients to 1e-5 of their largest entry.

    `compile` must find one graph each in the teacher, the student and the losses, or it raises.
    """
    plain = losses_and_gradients(
        decide(precision="fp32", attention="sdpa", pack_teacher=False), padded
    )
    sums, gradients = losses_and_gradients(decide(precision="fp32", **speed), padded)
    assert sums.tolist() == pytest.approx(plain[0].tolist(), rel=1e-5)
    for ours, theirs in zip(gradients, plain[1], strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-6


def test_eight_bits_are_asked_for_in_the_model_section_and_refused_where_a_gpu_has_none(
    run_config, monkeypatch
):
    config = run_config(precision="fp32", model=ModelConfig(teacher_precision="fp8"))
    assert Execution.of(config, WORLD, CPU, 16, 2).fp8_teacher
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "A100")
    with pytest.raises(UnfitMachine, match="8.9 or more; this is A100") as raised:
        to_float8(SimpleNamespace(), GPU)
    assert not raised.value.restart_helps


@pytest.fixture
def graphs(monkeypatch):
    """Compile with dynamo's graphs run as they are; collects the number of rows of each graph."""
    made, compile_with = [], torch.compile

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(compile_with, backend=backend))
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def terms_of(decide, batches, terms=(), **changes):
    """The sums of a batch after another, with student and teacher compiled."""
    execution = decide(precision="fp32", pack_teacher=False)
    execution = replace(execution, **{"compile": True, **changes})
    student, teacher = tiny_bert(2, 20, 4, 1), tiny_bert(4, 32, 4, 2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        objective = Objective(student, teacher, ObjectiveConfig(**dict(terms)))
    tap = objective.teacher_tap(copy.deepcopy(teacher))
    execution.prepare(objective, tap, CPU)
    with torch.no_grad():
        return [objective(batch, tap(batch)) for batch in batches]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
@pytest.mark.parametrize("terms", [{}, {"relation": 1.0}], ids=str)
def test_a_batch_with_padding_makes_no_second_graph(decide, graphs, terms):
    expected = terms_of(decide, [WHOLE, ROWS], terms, compile=False)
    found = terms_of(decide, [WHOLE, ROWS, WHOLE], terms)
    assert len(graphs) == 3  # teacher, student, losses
    for ours, theirs in zip(found, expected, strict=False):
        assert torch.allclose(ours, theirs, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_more_sizes_of_batches_than_dynamos_limit_compile(decide, graphs):
    """It counts graphs of one function, which teacher and student share: 8."""
    rows = padded_batch(5)
    sizes = [rows.part(0, size) for size in range(1, 6)]
    terms_of(decide, sizes)
    assert len(graphs) == 3 * 5


def test_logits_are_worked_on_in_blocks_unless_a_gpus_kernels_are_fused(monkeypatch):
    logits = {
        kind: SimpleNamespace(shape=(9000, 30_522), device=torch.device(kind))
        for kind in ("cpu", "cuda")
    }
    sizes = {kind: {b.stop - b.start for b in _blocks(logits[kind])} for kind in logits}
    assert sizes == {"cpu": {2**20 // 30_522}, "cuda": {2**26 // 30_522}}
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert _blocks(logits["cuda"]) == [slice(0, 9000)]
    assert len(_blocks(logits["cpu"])) > 1


@pytest.mark.parametrize(
    ("device", "zero_stage", "compile", "taken"),
    [(GPU, 2, None, True), (GPU, 2, False, False), (GPU, 3, None, False), (CPU, 2, True, False)],
)
def test_cuda_graphs_need_a_gpu_and_compiled_models(decide, device, zero_stage, compile, taken):
    if taken:
        assert decide(device, zero_stage=zero_stage, compile=compile, cuda_graphs=True).cuda_graphs
        assert not decide(device, zero_stage=zero_stage, compile=compile).cuda_graphs
        return
    with pytest.raises(ConfigError, match="speed.cuda_graphs .* leave it out"):
        decide(device, zero_stage=zero_stage, compile=compile, cuda_graphs=True)


def test_both_models_are_compiled_in_the_mode_of_cuda_graphs_and_the_losses_are_not(
    decide, monkeypatch
):
    modes = []

    def compile(function, mode, **settings):
        modes.append(mode)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    terms_of(decide, [WHOLE], cuda_graphs=True)
    assert modes == ["reduce-overhead", None, "reduce-overhead"]


def test_deterministic_kernels_are_asked_for_before_a_run_computes_and_only_if_wanted(decide):
    try:
        terms_of(decide, [WHOLE], compile=False)
        assert not torch.are_deterministic_algorithms_enabled()
        terms_of(decide, [WHOLE], compile=False, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and inductor.deterministic
    finally:
        torch.use_deterministic_algorithms(False)
        inductor.deterministic = False


def test_a_rank_compiles_with_its_share_of_a_hosts_cores_unless_a_user_says_otherwise(
    decide, monkeypatch
):
    monkeypatch.setattr(inductor, "compile_threads", 32)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    for named, threads in (("5", 32), (None, 3)):
        if named:
            monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", named)
        else:
            monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
        terms_of(decide, [WHOLE])
        assert inductor.compile_threads == threads and not inductor.deterministic
