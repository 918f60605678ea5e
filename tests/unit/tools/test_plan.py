"""The cost model against real models, a ring of loops, and runs of days by chance."""

import json
import random
import re
from dataclasses import replace

import pytest

from fitb.base.errors import ConfigError
from fitb.cli import main
from fitb.config import Geometry, ObjectiveConfig
from fitb.model.flops import trained_parameters
from fitb.tools.plan import PlanConfig, plan, render, traffic

SMALL = Geometry(2, 24, 40, 4), Geometry(4, 48, 96, 4)
DAYS = PlanConfig(  # 35 hours of work, a stop every 2.4 hours
    nodes=2,
    gpus=4,
    tokens=1e9,
    tokens_per_s=1000.0,
    checkpoint_every=50,
    preemptions_per_day=4.0,
    node_failures_per_day=3.0,
    disk_gb_per_s=0.002,
    queue_min=30.0,
    start_min=5.0,
)


@pytest.mark.parametrize("student", [Geometry(), SMALL[0]])
@pytest.mark.parametrize("length", [128, 600])
@pytest.mark.parametrize("teacher", [SMALL[1], None])
def test_trained_parameters_are_those_of_the_objective(tokenizer, student, length, teacher):
    from fitb.model.load import load_model
    from fitb.objective.objective import Objective

    models = [
        geometry and load_model(geometry, tokenizer=tokenizer, length=length).model
        for geometry in (student, teacher)
    ]
    objective = Objective(*models, ObjectiveConfig(attention=0.0))
    assert trained_parameters(student, teacher, vocabulary=len(tokenizer), length=length) == sum(
        p.numel() for p in objective.parameters() if p.requires_grad
    )


def ring_hops(size):
    """Chunks that each process hands to its neighbour until all hold the sums of all."""
    held = [[{rank} for _ in range(size)] for rank in range(size)]  # by rank and chunk
    hops = 0
    while any(len(ranks) < size for chunks in held for ranks in chunks):
        moved = [held[rank][(rank - hops) % size] for rank in range(size)]
        for rank, ranks in enumerate(moved):
            held[(rank + 1) % size][(rank - hops) % size] |= ranks
        hops += 1
    return hops


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 2), (1, 8), (2, 4), (3, 1)])
@pytest.mark.parametrize(("precision", "message_mb"), [("fp32", 12.0), ("bf16", 6.0)])
def test_a_ring_of_loops_sends_what_the_model_says(nodes, gpus, precision, message_mb):
    found, size = traffic(3_000_000, precision, nodes, gpus), nodes * gpus
    assert found.all_reduce_mb == found.all_gather_mb == message_mb
    hops = ring_hops(size) + size - 1  # an all-gather is the second half of an all-reduce
    assert found.sent_mb == pytest.approx(hops * message_mb / size)
    assert found.node_link_mb == (found.sent_mb if nodes > 1 else 0)


def test_one_process_sends_nothing_and_waits_for_nobody():
    found = plan(PlanConfig(nodes=1, gpus=1, tokens_per_s=2000.0, rows=32, tokens=4_096_000))
    assert found.communication_ms == found.traffic.sent_mb == 0
    assert (found.steps, found.step_tokens, found.compute_ms) == (1000, 4096, 2048.0)
    assert found.tokens_per_s == pytest.approx(2000)


@pytest.mark.parametrize(("nodes", "gpus", "slowest"), [(1, 8, 400.0), (2, 1, 50.0), (2, 8, 50.0)])
def test_the_slowest_link_that_is_used_carries_the_step(nodes, gpus, slowest):
    config = PlanConfig(nodes=nodes, gpus=gpus, latency_us=100.0)
    found = plan(config)
    assert found.communication_ms == pytest.approx(found.traffic.sent_mb / slowest + 6 * 0.1)
    bf16 = plan(replace(config, precision="bf16"))  # it asks nobody whether a gradient overflowed
    assert found.communication_ms - bf16.communication_ms == pytest.approx(0.1)


def days_by_chance(config, found, rng):
    """Seconds held and waited by one run, stop after stop."""
    step_s = (found.compute_ms + found.communication_ms) / 1e3
    save_s = found.checkpoint_mb / 1e3 / config.disk_gb_per_s
    interval_s = config.checkpoint_every * step_s
    preempted, failed = config.preemptions_per_day, config.node_failures_per_day * config.nodes
    stops_per_s = (preempted + failed) / 86_400
    left_s, held_s, waited_s = found.hours * 3600, 0.0, 0.0
    while True:
        until_stop_s = rng.expovariate(stops_per_s)
        if until_stop_s >= left_s:
            return held_s + left_s, waited_s
        held_s += until_stop_s
        waited_s += 60 * config.queue_min
        done_s = until_stop_s
        if rng.random() < failed / (preempted + failed):
            in_flight_s = config.background * save_s
            done_s -= min(done_s, in_flight_s + rng.uniform(0, interval_s))
        else:
            done_s -= save_s
        left_s -= done_s - 60 * config.start_min


@pytest.mark.parametrize("background", [False, True])
def test_expected_hours_are_those_of_many_runs_by_chance(background):
    """The means of 400 runs agree to 2 %."""
    config = replace(DAYS, background=background)
    found = plan(config)
    rng = random.Random(7)
    runs = [days_by_chance(config, found, rng) for _ in range(400)]
    held_h = sum(held for held, _ in runs) / len(runs) / 3600
    total_h = held_h + sum(waited for _, waited in runs) / len(runs) / 3600
    assert found.gpu_hours_expected / found.processes == pytest.approx(held_h, rel=0.02)
    assert found.hours_expected == pytest.approx(total_h, rel=0.02)
    assert found.hours_expected > 1.1 * found.hours


def test_no_other_interval_of_checkpoints_loses_less_than_the_best():
    """To 0.2 %: Young's formula is a first-order approximation."""
    blocking = replace(DAYS, background=False)
    best = plan(blocking).best_checkpoint_every
    hours = {
        every: plan(replace(blocking, checkpoint_every=every)).hours_expected
        for every in {best, *range(5, 4 * best, 5)}
    }
    assert hours[best] <= 1.002 * min(hours.values())
    assert max(hours.values()) > 1.02 * hours[best]
    assert plan(replace(DAYS, node_failures_per_day=0.0)).best_checkpoint_every is None


def test_a_job_that_stops_faster_than_it_goes_on_is_refused():
    with pytest.raises(ConfigError, match=r"never end; lower checkpoint_every or start_min"):
        plan(replace(DAYS, preemptions_per_day=300.0))


@pytest.mark.parametrize(
    "wrong", [{"nodes": 0}, {"tokens": -1.0}, {"mfu": float("nan")}, {"latency_us": -1.0}]
)
def test_a_number_out_of_range_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name}=.*above 0"):
        PlanConfig(**wrong)


def test_the_command_prints_one_object_or_a_page(capsys):
    flags = ["--nodes", "2", "--gpus", "4", "--tokens", "1e9"]
    assert main(["plan", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["processes"], found["steps"]) == (8, -(-1_000_000_000 // found["step_tokens"]))
    assert main(["plan", *flags]) == 0
    page = capsys.readouterr().out
    assert f"{found['steps']:,} of {found['step_tokens']:,} tokens" in page
    assert "MFU 40% to 5%" in page  # neither is a measurement
    assert found["fastest"]["tokens_per_s"] > 5 * found["tokens_per_s"]
    fast, slow = (f"{end['tokens_per_s']:,.0f}" for end in (found["fastest"], found))
    assert f"{fast} to {slow} tokens/s" in page
    assert main(["plan", *flags, "--mfu", "0.2"]) == 0
    assert "MFU 20% of" in capsys.readouterr().out
    assert main(["plan", *flags, "--tokens_per_s", "1e6"]) == 0
    page = capsys.readouterr().out
    assert "assumed" not in page and " to " not in page.replace("to failures", "")


def test_a_run_of_minutes_is_told_in_minutes():
    short = PlanConfig(gpus=1, tokens=6e7, tokens_per_s=1e5, preemptions_per_day=0.0)
    assert re.search(r"^time +10 min, ", render(plan(short)), re.MULTILINE)
    assert re.search(r"^time +5\.0 h, ", render(plan(replace(short, tokens=1.8e9))), re.MULTILINE)


def test_a_step_is_no_faster_than_the_host_that_launches_it():
    """Eight micro-batches of 32 rows, 5 ms each, and 2 ms beside them."""
    fast = PlanConfig(gpus=1, tokens_per_s=2e6, rows=256, micro_batch=32)
    host = replace(fast, host_ms_per_micro_batch=5.0, host_ms_per_step=2.0)
    assert plan(fast).compute_ms == pytest.approx(16.384) and plan(fast).host_ms == 0
    assert plan(host).compute_ms == plan(host).host_ms == pytest.approx(42.0)
    assert plan(replace(host, micro_batch=None)).compute_ms == pytest.approx(16.384)
