"""What a training step hands to DeepSpeed, with a stand-in for DeepSpeed."""

import math
import os
import signal
import subprocess
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from fitb.base.errors import TrainingError
from fitb.base.signals import SHUTDOWN, handled
from fitb.base.world import World
from fitb.config import AlgorithmsConfig, OptimConfig
from fitb.training.engine import Engine, learning_rate
from fitb.training.gradients import GradientSum

WEIGHTS = (2.0, 0.5, 0.0)


class StandIn:
    """Remembers losses, learning rates and the teacher's answers; sums are the batch's own."""

    def __init__(self, gradients):
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}, {"lr": 0.0}])
        self.optimizer.averaged_gradients = {0: gradients[:1], 1: gradients[1:]}
        self.skipped_steps = self.reductions = 0
        self.losses, self.draws, self.answers, self.steps = [], [], [], 0
        self.overflows = False
        self.error = None
        self.norm = 3.0

    def train(self):
        self.training = True

    def __call__(self, batch, teacher):
        self.draws.append(torch.rand(1).item())
        self.answers.append(teacher and teacher.rows)
        return batch.rows.sum(0)

    def backward(self, loss, scale_wrt_gas):
        assert scale_wrt_gas is False
        self.losses.append(loss.item())

    def step(self):
        if self.error:
            raise self.error
        self.steps += 1
        self.skipped_steps += self.overflows

    @contextmanager
    def coalesce_grad_reduction(self):
        yield
        self.reductions += 1

    def get_global_grad_norm(self):
        return self.norm


class Rows:
    """Stands for a batch, and for what the teacher says of it: the sums of each row."""

    def __init__(self, rows):
        self.rows = self.input_ids = torch.as_tensor(rows)

    def to(self, device):
        return self

    def part(self, begin, end, num_rows=None):
        assert num_rows in (None, len(self.rows))
        return Rows(self.rows[begin:end])


@pytest.fixture
def make_engine(run_config):
    def make(rank=0, size=1, gradients=(), norm=AlgorithmsConfig.norm, **optim):
        """With gradients fitb ends the step itself: it clips them, and takes their norm."""
        optim = OptimConfig(**{"lr": 1.0, "warmup_steps": 4, **optim})
        engine = Engine.__new__(Engine)
        engine.before_update, engine._work_s = lambda: None, 0.0
        changes = {"optim": optim, "seed": 7, "algorithms": AlgorithmsConfig(norm=norm)}
        engine.config = run_config(steps=20, micro_batch=1, **changes)
        engine.world, engine.device = World(rank, size), torch.device("cpu")
        engine.teacher, engine._ends_steps = None, bool(gradients)
        engine._grad_accum, engine._asked_at_once = 2, 1
        engine._gradients = GradientSum([])
        engine.objective = SimpleNamespace(weights=WEIGHTS)
        engine.weights = torch.tensor(WEIGHTS, dtype=torch.float64)
        engine._worst_norm, engine._checked_step = torch.zeros(()), 0
        engine._engine = StandIn(gradients)
        return engine

    return make


COUNTS = torch.tensor([4.0, 8.0, 8.0, 2.0, 3.0, 5.0, 7.0], dtype=torch.float64)
BATCH = Rows([[1.0, 2.0, 3.0], [5.0, 7.0, 9.0]])


@pytest.mark.parametrize("size", [1, 3])
def test_each_micro_batch_gives_its_part_of_the_weighted_means_times_ranks(make_engine, size):
    """DeepSpeed divides by the ranks and by nothing else."""
    engine = make_engine(size=size)
    result = engine.train_step(2, BATCH, COUNTS)
    expected = [size * (2.0 * a / 4 + 0.5 * b / 8) for a, b in ((1, 2), (5, 7))]
    assert engine._engine.losses == pytest.approx(expected)
    assert engine._engine.steps == 2
    assert result.sums.tolist() == [6, 9, 12]
    assert result.counts.tolist() == [4, 8, 8]
    assert result.coverage.tolist() == [2, 3, 5, 7]
    assert result.grad_norm.item() == 3.0
    assert not result.skipped


def test_a_term_without_any_count_adds_nothing(make_engine):
    engine = make_engine()
    engine._grad_accum = 1
    counts = COUNTS.clone()
    counts[1] = 0
    engine.train_step(0, Rows([[1.0, 0.0, 0.0]]), counts)
    assert engine._engine.losses == [0.5]


def test_every_group_gets_the_learning_rate_of_the_step(make_engine):
    engine = make_engine()
    for step in (0, 3, 4, 19):
        result = engine.train_step(step, BATCH, COUNTS)
        expected = learning_rate(step, 20, engine.config.optim)
        assert [g["lr"] for g in engine._engine.optimizer.param_groups] == [expected] * 2
        assert result.lr == expected


def test_dropout_follows_from_seed_step_and_rank_and_from_nothing_before(make_engine):
    draws = {}
    for step, rank in ((0, 0), (1, 0), (0, 1), (0, 0)):
        torch.rand(step + 13)
        engine = make_engine(rank, 2)
        engine.train_step(step, BATCH, COUNTS)
        assert len(set(engine._engine.draws)) == 2
        assert draws.setdefault((step, rank), engine._engine.draws) == engine._engine.draws
    assert len({tuple(values) for values in draws.values()}) == 3


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        ("loss scale already at minimum - no", TrainingError, "step 5.*--precision bf16"),
        ("out of memory", RuntimeError, "out of memory"),
    ],
)
def test_the_least_loss_scale_is_an_error_with_a_remedy_and_others_stay_themselves(
    make_engine, error, raised, said
):
    engine = make_engine()
    engine._engine.error = RuntimeError(error)
    with pytest.raises(raised, match=said) as caught:
        engine.train_step(5, BATCH, COUNTS)
    assert not getattr(caught.value, "restart_helps", False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])  # -1 is DeepSpeed's word for both
def test_a_norm_that_is_not_finite_stops_the_run_before_anything_is_written(make_engine, value):
    """fp32 and bf16 have no loss scale that would skip the step: the weights are lost."""
    engine = make_engine()
    engine.train_step(4, BATCH, COUNTS)
    engine.check_finite(5)
    engine._engine.norm = value
    engine.train_step(5, BATCH, COUNTS)
    engine._engine.norm = 3.0
    engine.train_step(6, BATCH, COUNTS)  # a later step that is finite hides nothing
    with pytest.raises(TrainingError, match="steps 6 to 7: .* not finite"):
        engine.check_finite(7)


def test_a_skipped_step_is_told_has_no_norm_and_is_not_taken_for_one_that_is_not_finite(
    make_engine,
):
    engine = make_engine()
    engine._engine.overflows, engine._engine.norm = True, math.inf
    result = engine.train_step(0, BATCH, COUNTS)
    assert result.skipped and result.grad_norm is None
    engine.check_finite(1)


@pytest.mark.parametrize(
    ("at_once", "grad_accum", "expected"),
    [(1, 6, [1] * 6), (2, 6, [2] * 3), (6, 6, [6]), (2, 4, [3, 3]), (1, 4, [1, 2, 1, 2])],
)
def test_the_teacher_answers_for_many_rows_and_each_micro_batch_gets_its_own(
    make_engine, at_once, grad_accum, expected
):
    engine = make_engine()
    asked = []
    engine.teacher = lambda batch: asked.append(len(batch.rows)) or Rows(10 * batch.rows)
    engine._asked_at_once, engine._grad_accum = at_once, grad_accum
    rows = torch.arange(18.0).reshape(6, 3)
    engine.train_step(0, Rows(rows), COUNTS)
    assert asked == expected
    assert torch.equal(torch.cat(engine._engine.answers), 10 * rows)
    assert engine._engine.steps == grad_accum


@pytest.mark.parametrize(("clip_norm", "scale"), [(1.0, 1.0), (1.0, 8.0), (100.0, 1.0), (0.0, 4.0)])
def test_gradients_are_clipped_by_their_norm_before_the_loss_scale(make_engine, clip_norm, scale):
    """What torch does to all of them at once, unscaled; to 1e-6."""
    parts = [torch.randn(5, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    found = [scale * part for part in parts]
    engine = make_engine(gradients=found, clip_norm=clip_norm)
    engine._engine.optimizer.cur_scale = scale
    expected = [torch.nn.Parameter(torch.zeros(5)) for _ in parts]
    for parameter, part in zip(expected, parts, strict=True):
        parameter.grad = part.clone()
    norm = torch.nn.utils.clip_grad_norm_(expected, clip_norm or math.inf)
    result = engine.train_step(0, BATCH, COUNTS)
    assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6)
    assert engine._engine.reductions == engine._engine.steps == 1
    for gradient, parameter in zip(found, expected, strict=True):
        assert torch.allclose(gradient / scale, parameter.grad, rtol=1e-6)


SMALL_AND_LARGE = torch.full((2**22,), 1e-4)
SMALL_AND_LARGE[:64] = 1.0


@pytest.mark.parametrize(
    ("gradient", "rel"),
    [
        (SMALL_AND_LARGE, 1e-7),
        *((torch.full((16,), 300.0, dtype=d), 1e-2) for d in (torch.float16, torch.bfloat16)),
    ],
    ids=["small beside large", "fp16", "bf16"],
)
def test_a_norm_is_taken_in_a_type_that_holds_it(make_engine, gradient, rel):
    """In fp32 a square of 1e-8 added to 1 is gone, and a hundred million of them with it; in fp16
    squares above 65,504 are infinite, and each gradient was clipped to nothing."""
    exact, clipped = math.sqrt(sum(gradient.double().square().tolist())), gradient.clone()
    engine = make_engine(gradients=[clipped], clip_norm=1.0)
    assert engine.train_step(0, BATCH, COUNTS).grad_norm.item() == pytest.approx(exact, rel=1e-7)
    assert clipped.double().norm().item() == pytest.approx(1.0, rel=max(rel, 1e-6))


def test_a_run_of_before_keeps_the_norm_it_began_with(make_engine):
    gradient = torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    (before,) = torch._foreach_norm([gradient], dtype=torch.float32)
    engine = make_engine(gradients=[gradient], norm=1, clip_norm=1.0)
    assert engine.train_step(0, BATCH, COUNTS).grad_norm.item() == before.square().sqrt().item()


def test_a_compiler_that_a_step_starts_outlives_the_signals_that_slurm_sends_to_all(make_engine):
    """This process hears them still: another thread does, and the handler runs in the main one."""
    engine, compilers, heard = make_engine(), [], threading.Event()
    threading.Thread(target=heard.wait, daemon=True).start()

    def compile():
        if compilers:
            return
        compilers.append(subprocess.Popen(["sleep", "60"]))
        for number in SHUTDOWN:
            compilers[0].send_signal(number)
        os.kill(os.getpid(), signal.SIGUSR1)

    engine.before_update = compile
    with handled(SHUTDOWN, lambda *_: heard.set()):
        engine.train_step(2, BATCH, COUNTS)
        assert heard.wait(5)
    (compiler,) = compilers
    with pytest.raises(subprocess.TimeoutExpired):
        compiler.wait(0.2)
    compiler.kill()
    assert compiler.wait(5) == -signal.SIGKILL
