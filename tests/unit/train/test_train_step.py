"""What a training step hands to DeepSpeed, with a stand-in for DeepSpeed."""

from types import SimpleNamespace

import pytest
import torch

from fitb.config import OptimConfig
from fitb.errors import TrainingError
from fitb.train.engine import Engine, learning_rate
from fitb.world import World

WEIGHTS = (2.0, 0.5, 0.0)


class StandIn:
    """Remembers losses and learning rates; a batch is the tensor of its sums."""

    def __init__(self):
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}, {"lr": 0.0}])
        self.skipped_steps = 0
        self.losses, self.draws, self.steps = [], [], 0
        self.overflows = False
        self.error = None

    def train(self):
        self.training = True

    def __call__(self, batch, teacher):
        assert teacher is None
        self.draws.append(torch.rand(1).item())
        return batch.sums

    def backward(self, loss, scale_wrt_gas):
        assert scale_wrt_gas is False
        self.losses.append(loss.item())

    def step(self):
        if self.error:
            raise self.error
        self.steps += 1
        self.skipped_steps += self.overflows

    def get_global_grad_norm(self):
        return 3.0


class StandInBatch:
    def __init__(self, *sums):
        self.sums = torch.tensor(sums)

    def to(self, device):
        return self


@pytest.fixture
def make_engine(make_config):
    def make(rank=0, size=1):
        engine = Engine.__new__(Engine)
        engine.config = make_config(steps=20, optim=OptimConfig(lr=1.0, warmup_steps=4), seed=7)
        engine.world, engine.device = World(rank, size), torch.device("cpu")
        engine.teacher = None
        engine.objective = SimpleNamespace(weights=WEIGHTS)
        engine.weights = torch.tensor(WEIGHTS, dtype=torch.float64)
        engine._engine = StandIn()
        return engine

    return make


COUNTS = torch.tensor([4.0, 8.0, 8.0, 2.0, 3.0, 5.0, 7.0], dtype=torch.float64)
BATCHES = [StandInBatch(1.0, 2.0, 3.0), StandInBatch(5.0, 7.0, 9.0)]


@pytest.mark.parametrize("size", [1, 3])
def test_each_micro_batch_gives_its_part_of_the_weighted_means_times_ranks(make_engine, size):
    """DeepSpeed divides by the ranks and by nothing else."""
    engine = make_engine(size=size)
    result = engine.train_step(2, BATCHES, COUNTS)
    expected = [size * (2.0 * a / 4 + 0.5 * b / 8) for a, b in ((1, 2), (5, 7))]
    assert engine._engine.losses == pytest.approx(expected)
    assert engine._engine.steps == 2
    assert result.sums.tolist() == [6, 9, 12]
    assert result.counts.tolist() == [4, 8, 8]
    assert result.coverage.tolist() == [2, 3, 5, 7]
    assert result.grad_norm == 3.0
    assert not result.skipped


def test_a_term_without_any_count_adds_nothing(make_engine):
    engine = make_engine()
    counts = COUNTS.clone()
    counts[1] = 0
    engine.train_step(0, [StandInBatch(1.0, 0.0, 0.0)], counts)
    assert engine._engine.losses == [0.5]


def test_every_group_gets_the_learning_rate_of_the_step(make_engine):
    engine = make_engine()
    for step in (0, 3, 4, 19):
        result = engine.train_step(step, BATCHES, COUNTS)
        expected = learning_rate(step, 20, engine.config.optim)
        assert [g["lr"] for g in engine._engine.optimizer.param_groups] == [expected] * 2
        assert result.lr == expected


def test_dropout_follows_from_seed_step_and_rank_and_from_nothing_before(make_engine):
    draws = {}
    for step, rank in ((0, 0), (1, 0), (0, 1), (0, 0)):
        torch.rand(step + 13)
        engine = make_engine(rank, 2)
        engine.train_step(step, BATCHES, COUNTS)
        assert len(set(engine._engine.draws)) == 2
        assert draws.setdefault((step, rank), engine._engine.draws) == engine._engine.draws
    assert len({tuple(values) for values in draws.values()}) == 3


def test_a_skipped_step_is_told_and_has_no_norm(make_engine):
    engine = make_engine()
    engine._engine.overflows = True
    result = engine.train_step(0, BATCHES, COUNTS)
    assert result.skipped
    assert result.grad_norm is None


def test_the_least_loss_scale_is_an_error_that_says_what_to_do(make_engine):
    engine = make_engine()
    engine._engine.error = Exception("Current loss scale already at minimum - cannot decrease")
    with pytest.raises(TrainingError, match="step 5.*--precision bf16") as raised:
        engine.train_step(5, BATCHES, COUNTS)
    assert not raised.value.restart_helps


def test_another_error_of_deepspeed_stays_itself(make_engine):
    engine = make_engine()
    engine._engine.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.train_step(5, BATCHES, COUNTS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_without_a_skip_stops_the_run(make_engine, value):
    """fp32 and bf16 have no loss scale that would skip the step: the weights would be lost."""
    engine = make_engine()
    engine._engine.get_global_grad_norm = lambda: torch.tensor(value)  # the same on every rank
    with pytest.raises(TrainingError, match="not finite"):
        engine.train_step(5, [StandInBatch(1.0, value, 0.0)], COUNTS)
