"""Totals of the logged terms, and what a meter reads off a step."""

from types import SimpleNamespace

import pytest
import torch

from fitb.base.world import World
from fitb.config import TrackConfig
from fitb.training.engine import StepResult
from fitb.training.step_metrics import Meter, terms

NAMES = (
    "distill/embedding",
    "distill/hidden/layer_1",
    "distill/hidden/layer_2",
    "distill/attention/layer_1",
    "distill/logits",
    "student/loss_mlm",
    "student/top1",
)
WEIGHTS = (0.5, 2.0, 2.0, 3.0, 4.0, 5.0, 0.0)
MEANS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.7]


WEIGHTED = {
    "weighted/embedding": 0.5,
    "weighted/hidden": 10.0,
    "weighted/attention": 12.0,
    "weighted/logits": 20.0,
    "weighted/mlm": 30.0,
}


def test_terms_are_logged_unweighted_and_totals_are_sums_of_the_weighted_parts():
    totals = {"distill/total": 42.5, "train/loss": 72.5}
    assert terms(NAMES, WEIGHTS, MEANS) == dict(zip(NAMES, MEANS, strict=True)) | WEIGHTED | totals
    alone = {"student/loss_mlm": 3.0, "student/top1": 0.5}  # without a teacher
    totals = {"train/loss": 6.0, "weighted/mlm": 6.0}
    assert terms(tuple(alone), (2.0, 0.0), [3.0, 0.5]) == alone | totals


@pytest.fixture
def make_meter(run_config):
    def make(every_steps):
        objective = SimpleNamespace(names=NAMES, weights=WEIGHTS)
        engine = SimpleNamespace(objective=objective, loss_scale=8.0, skipped_steps=1)
        engine.check_finite = lambda step: None
        engine.world, engine.device = World(), torch.device("cpu")
        engine.take_work_s = lambda: 0.5
        parts = SimpleNamespace(
            engine=engine,
            stream=SimpleNamespace(waited_s=0.0),
            progress=SimpleNamespace(step=0),
            token_flops=2e9,
            added_ids=(),
            peak_tflops=0.5,
        )
        config = run_config(steps=10, track=TrackConfig(every_steps=every_steps))
        return Meter(parts, SimpleNamespace(), config)

    return make


def result(rows=4.0, tokens=100.0, used=(3.0, 5.0, 4.0, 4.0), norm=2.0):
    counts = torch.tensor([10.0] * 5 + [2.0, 2.0], dtype=torch.float64)
    return StepResult(
        sums=torch.tensor(MEANS) * counts.float(),
        counts=counts,
        coverage=torch.tensor([rows, tokens, sum(used), sum(n * n for n in used)]).double(),
        grad_norm=norm,
        skipped=norm is None,
        lr=0.25,
    )


def test_a_step_that_is_not_logged_gives_nothing_and_the_last_always_does(make_meter):
    meter = make_meter(4)
    logged = [step for step in range(1, 11) if meter.read(step, result())]
    assert logged == [4, 8, 10]


def test_a_logged_step_gives_means_coverage_and_the_state_of_the_optimiser(make_meter):
    metrics = make_meter(1).read(1, result())
    wanted = dict(zip(NAMES, MEANS, strict=True)) | {
        "mask/coverage": 0.16,
        "mask/slots_per_row": 4,
        "mask/slots_per_row_variance": 0.5,
        "optim/lr": 0.25,
        "optim/loss_scale": 8.0,
        "optim/skipped_steps": 1,
        "optim/grad_norm": 2.0,
    }
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted, rel=1e-6)
    assert "optim/grad_norm" not in make_meter(1).read(1, result(norm=None))  # skipped


def test_speed_counts_the_steps_between_two_lines(make_meter, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = make_meter(2)
    meter.read(1, result())
    now[0] += 4
    metrics = meter.read(2, result())
    wanted = {"tokens_per_s": 50, "tflops": 0.1, "mfu": 0.2, "steps_per_s": 0.5}  # peak: 250
    assert {name: metrics[f"perf/{name}"] for name in wanted} == pytest.approx(wanted)
    meter.read(3, result())
    now[0] += 1
    meter._parts.stream.waited_s = 0.5
    meter._parts.peak_tflops = None  # of a device that is not in the table, as a CPU
    metrics = meter.read(4, result())
    wanted = {"tflops": 0.4, "tokens_per_s": 200, "data_wait_frac": 0.5}
    assert {name: metrics[f"perf/{name}"] for name in wanted} == pytest.approx(wanted)
    assert "perf/mfu" not in metrics
