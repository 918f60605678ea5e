"""`fitb plan`: cost model of a run: time, network traffic, checkpoints, losses to faults.

A step is the longer of its arithmetic at a given rate and the host's work that launches it, then
communication without overlap, as ds_configs/zero2.json sets it. Where no rate was measured the
estimate is a range. tests/benchmarks/plan.py compares it with real steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from fitb.base.errors import ConfigError
from fitb.config import Geometry, MaskConfig
from fitb.config.schema import GPU_TOKENS
from fitb.data.masking import num_slots
from fitb.model.flops import (
    BERT_BASE,
    VOCABULARY,
    checkpoint_bytes,
    trained_parameters,
    work_per_token,
)

_COLLECTIVES = 5  # per step: agreement, gradients, their norm, weights of two parameter groups
_OVERFLOW = 1  # per step in fp16: whether a gradient overflowed
_SLOWEST_MFU, _FASTEST_MFU = 0.05, 0.4  # where nothing was measured
_ZERO_OK = ("host_ms_per_micro_batch", "host_ms_per_step", "latency_us", "node_failures_per_day",
            "preemptions_per_day", "queue_min", "start_min")  # fmt: skip


@dataclass(frozen=True)
class PlanConfig:
    """Estimate time, GPU hours, traffic, checkpoints and losses to faults of a run with ZeRO 2.

    Args:
        nodes: number of nodes.
        gpus: processes (GPUs) per node.
        tokens: tokens of the whole run; 1e10 is ten billion.
        length: tokens per row.
        rows: rows per process and step: micro_batch times accumulation.
        micro_batch: rows per forward pass; null takes 32,768 tokens, as training does on a GPU.
        mask_fraction: share of tokens masked; the presets of TinyBERT have 0.3.
        precision: precision of gradients and weights on the network.
        vocabulary: vocabulary size.
        teacher: geometry of the teacher; default BERT-base.
        student: geometry of the student; default TinyBERT-4.
        tokens_per_s: speed of one process alone, as `fitb bench step` prints; null for mfu x peak.
        mfu: share of peak_tflops that a step reaches; null estimates with 5 % and with 40 %.
        host_ms_per_micro_batch: the host's work on a micro-batch, as `fitb bench step --kernels`
            prints; a step is no faster than its host.
        host_ms_per_step: the host's other work on a step.
        peak_tflops: peak of one GPU in this precision; 989 is an H100's in 16 bits.
        node_link_gb_per_s: network bandwidth of a node, each way; 50 is 400 Gbit/s.
        gpu_link_gb_per_s: bandwidth between two GPUs of a node, each way.
        latency_us: latency of an all-reduce of one number, as `fitb bench comm` prints.
        checkpoint_every: steps between two checkpoints.
        background: whether training goes on while one is written.
        keep_last: number of checkpoints kept beside the best one.
        disk_gb_per_s: speed at which one process writes a checkpoint.
        preemptions_per_day: preemptions per day of running, each after a signal.
        node_failures_per_day: failures per node and day, without a signal; Llama 3 had 419 in 54
            days on 2,048 nodes (https://arxiv.org/abs/2407.21783, section 3.3.4).
        queue_min: minutes that a stopped job waits in the queue.
        start_min: minutes from its start to the next step.
        json: print one JSON object.
    """

    nodes: int = 1
    gpus: int = 8
    tokens: float = 1e10
    length: int = 128
    rows: int = 256
    micro_batch: int | None = None
    mask_fraction: float = 0.3
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    vocabulary: int = VOCABULARY
    teacher: Geometry = field(default_factory=lambda: BERT_BASE)
    student: Geometry = field(default_factory=Geometry)
    tokens_per_s: float | None = None
    mfu: float | None = None
    host_ms_per_micro_batch: float = 0.0
    host_ms_per_step: float = 0.0
    peak_tflops: float = 989.0
    node_link_gb_per_s: float = 50.0
    gpu_link_gb_per_s: float = 400.0
    latency_us: float = 30.0
    checkpoint_every: int = 1000
    background: bool = True
    keep_last: int = 2
    disk_gb_per_s: float = 1.0
    preemptions_per_day: float = 1.0
    node_failures_per_day: float = 0.004
    queue_min: float = 10.0
    start_min: float = 1.0
    json: bool = False

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={value}"
            for name, value in vars(self).items()
            if type(value) in (int, float)
            and not (0 < value < math.inf or (value == 0 and name in _ZERO_OK))
        ]
        if wrong:
            raise ConfigError(
                f"{', '.join(wrong)}; expected finite numbers above 0"
                f" ({', '.join(_ZERO_OK)} may be 0)"
            )


@dataclass(frozen=True)
class Traffic:
    """Network traffic of one step.

    Args:
        all_reduce_mb: size of the gradients.
        all_gather_mb: size of the weights.
        sent_mb: sent by each process in a ring: (n - 1) / n of a message, twice for an all-reduce.
        node_link_mb: sent by each node: in a ring all of it crosses one link; 0 on one node.
    """

    all_reduce_mb: float
    all_gather_mb: float
    sent_mb: float
    node_link_mb: float


@dataclass(frozen=True)
class RunPlan:
    """Estimate of a run, first without faults, then, from `preemptions` on, with expected ones.

    Args:
        config: settings of the estimate.
        processes: nodes x gpus.
        parameters: trained parameters.
        steps: optimiser steps of the run.
        step_tokens: tokens of the global batch.
        compute_ms: arithmetic of a step, or the host's work, if that takes longer.
        host_ms: the host's work on a step.
        communication_ms: communication of a step.
        tokens_per_s: speed of the job.
        hours: duration, checkpoints included.
        gpu_hours: hours x processes.
        traffic: traffic of a step.
        checkpoint_mb: size of a checkpoint.
        checkpoints: number written.
        checkpoints_gb: total size written.
        kept_gb: size on disk at the end, the best one included.
        preemptions: expected number.
        failures: expected number.
        steps_lost: expected steps done twice.
        hours_expected: duration with faults and time in the queue.
        gpu_hours_expected: GPU hours with faults.
        best_checkpoint_every: checkpoint interval in steps that loses least; None without failures.
        fastest: the estimate at the highest MFU, if neither a rate nor an MFU is given, and this is
            the one at the lowest.
    """

    config: PlanConfig
    processes: int
    parameters: int
    steps: int
    step_tokens: int
    compute_ms: float
    host_ms: float
    communication_ms: float
    tokens_per_s: float
    hours: float
    gpu_hours: float
    traffic: Traffic
    checkpoint_mb: float
    checkpoints: int
    checkpoints_gb: float
    kept_gb: float
    preemptions: float
    failures: float
    steps_lost: float
    hours_expected: float
    gpu_hours_expected: float
    best_checkpoint_every: int | None
    fastest: RunPlan | None = None


def traffic(parameters: int, precision: str, nodes: int, gpus: int) -> Traffic:
    """Return the traffic of a step of ZeRO 2, at any accumulation; none with one process."""
    processes = nodes * gpus
    if processes == 1:
        return Traffic(0.0, 0.0, 0.0, 0.0)
    message_mb = parameters * (4 if precision == "fp32" else 2) / 1e6
    sent_mb = 3 * message_mb * (processes - 1) / processes
    return Traffic(message_mb, message_mb, sent_mb, sent_mb if nodes > 1 else 0.0)


def plan(config: PlanConfig) -> RunPlan:
    """Estimate a run.

    A preemption costs a save and a start, a failure half a checkpoint interval, the save in flight
    and a start; both wait in the queue. Saves in the background stop training only where one takes
    longer than the interval. The best interval is Young's, CACM 17 (9), 1974: the square root of
    twice the duration of a save divided by the failure rate; in the background a shorter one would
    lose less, and write more.

    Raises: ConfigError if faults are too frequent for any progress.
    """
    if config.tokens_per_s is None and config.mfu is None:
        slowest, fastest = (plan(replace(config, mfu=mfu)) for mfu in (_SLOWEST_MFU, _FASTEST_MFU))
        return replace(slowest, config=config, fastest=fastest)
    processes = config.nodes * config.gpus
    parameters = trained_parameters(
        config.student, config.teacher, vocabulary=config.vocabulary, length=config.length
    )
    sends = traffic(parameters, config.precision, config.nodes, config.gpus)
    host_s = _host_s(config)
    compute_s = max(host_s, config.rows * config.length / process_tokens_per_s(config))
    communication_s = _communication_s(config, sends)
    step_s = compute_s + communication_s
    step_tokens = config.rows * config.length * processes
    steps = math.ceil(config.tokens / step_tokens)
    checkpoint_mb = checkpoint_bytes(parameters) / 1e6
    checkpoints = math.ceil(steps / config.checkpoint_every)
    save_s = checkpoint_mb / 1e3 / config.disk_gb_per_s
    stall_s = max(0.0, save_s - config.checkpoint_every * step_s) if config.background else save_s
    work_s = steps * step_s + checkpoints * stall_s
    return RunPlan(
        config=config,
        processes=processes,
        parameters=parameters,
        steps=steps,
        step_tokens=step_tokens,
        compute_ms=1e3 * compute_s,
        host_ms=1e3 * host_s,
        communication_ms=1e3 * communication_s,
        tokens_per_s=step_tokens / step_s,
        hours=work_s / 3600,
        gpu_hours=work_s / 3600 * processes,
        traffic=sends,
        checkpoint_mb=checkpoint_mb,
        checkpoints=checkpoints,
        checkpoints_gb=checkpoint_mb * checkpoints / 1e3,
        kept_gb=checkpoint_mb * min(checkpoints, config.keep_last + 1) / 1e3,
        **_with_stops(config, work_s, step_s, save_s, min(config.checkpoint_every, steps)),
    )


def _host_s(config: PlanConfig) -> float:
    micro_batch = config.micro_batch or max(1, GPU_TOKENS // config.length)
    passes = math.ceil(config.rows / micro_batch)
    return (passes * config.host_ms_per_micro_batch + config.host_ms_per_step) / 1e3


def _communication_s(config: PlanConfig, sends: Traffic) -> float:
    links = [config.gpu_link_gb_per_s] * (config.gpus > 1)
    links += [config.node_link_gb_per_s] * (config.nodes > 1)
    if not links:
        return 0.0
    calls = _COLLECTIVES + _OVERFLOW * (config.precision == "fp16")
    return sends.sent_mb / 1e3 / min(links) + calls * config.latency_us / 1e6


def _with_stops(
    config: PlanConfig, work_s: float, step_s: float, save_s: float, interval: int
) -> dict[str, Any]:
    """Return the fields of RunPlan from `preemptions` on."""
    preempted = config.preemptions_per_day / 86_400
    failed = config.node_failures_per_day * config.nodes / 86_400
    again_s, start_s = interval * step_s / 2 + config.background * save_s, 60 * config.start_min
    lost = preempted * (save_s + start_s) + failed * (again_s + start_s)
    if lost >= 1:
        raise ConfigError(
            f"the job would lose {24 * lost:.1f} hours a day to faults and never end; lower"
            " checkpoint_every or start_min, or check preemptions_per_day and"
            " node_failures_per_day"
        )
    held_s = work_s / (1 - lost)
    queue_s = held_s * (preempted + failed) * 60 * config.queue_min
    best = math.sqrt(2 * save_s / failed) / step_s if failed else None
    return {
        "preemptions": held_s * preempted,
        "failures": held_s * failed,
        "steps_lost": held_s * failed * again_s / step_s,
        "hours_expected": (held_s + queue_s) / 3600,
        "gpu_hours_expected": held_s / 3600 * config.nodes * config.gpus,
        "best_checkpoint_every": best and max(1, round(best)),
    }


def process_tokens_per_s(config: PlanConfig) -> float:
    """Return the speed of one process alone: as given, or mfu x peak / FLOPs per token."""
    if config.tokens_per_s is not None:
        return config.tokens_per_s
    slots = num_slots(config.length, MaskConfig(fraction=config.mask_fraction))
    work = work_per_token(
        config.student,
        config.teacher,
        length=config.length,
        vocabulary=config.vocabulary,
        slots_per_token=slots / config.length,
    )
    assert config.mfu is not None
    return config.mfu * config.peak_tflops * 1e12 / work.total


def as_json(found: RunPlan) -> dict[str, Any]:
    """Return the estimate; if it is a range, `fastest` is its other end."""
    plain = {key: value for key, value in asdict(found).items() if key not in ("config", "fastest")}
    return plain | ({"fastest": as_json(found.fastest)} if found.fastest else {})


def render(found: RunPlan) -> str:
    """Render the estimate for people, from the fastest to the slowest if it is a range."""
    config, traffic = found.config, found.traffic
    ends = [found.fastest, found] if found.fastest else [found]

    def span(show: Callable[[RunPlan], str]) -> str:
        return " to ".join(dict.fromkeys(show(end) for end in ends))

    host = f", {found.host_ms:.1f} of the host's work beside it" if found.host_ms else ""
    step_ms = span(lambda end: f"{end.compute_ms + end.communication_ms:.1f}")
    lines = {
        "processes": f"{found.processes} ({config.nodes} x {config.gpus})",
        "steps": f"{found.steps:,} of {found.step_tokens:,} tokens",
        "a step": f"{step_ms} ms: {span(lambda end: f'{end.compute_ms:.1f}')} of arithmetic{host},"
        f" {found.communication_ms:.2f} of communication ({span(_communication_share)})",
        "speed": f"{span(lambda end: f'{end.tokens_per_s:,.0f}')} tokens/s",
        "time": f"{span(lambda end: _duration(end.hours))},"
        f" {span(lambda end: f'{end.gpu_hours:,.1f}')} GPU hours, without faults",
        "traffic of a step": f"{traffic.sent_mb:.1f} MB sent by each process,"
        f" {traffic.node_link_mb:.1f} MB out of each node",
        "checkpoints": f"{found.checkpoints:,} of {found.checkpoint_mb:.0f} MB, every"
        f" {config.checkpoint_every:,} steps: {found.checkpoints_gb:.1f} GB written,"
        f" {found.kept_gb:.2f} GB kept",
        "expected stops": f"{span(lambda end: f'{end.preemptions:.2f}')} preemptions,"
        f" {span(lambda end: f'{end.failures:.3f}')} failures,"
        f" {span(lambda end: f'{end.steps_lost:.0f}')} steps done twice",
        "expected time": f"{span(lambda end: _duration(end.hours_expected))} with time in the"
        f" queue, {span(lambda end: f'{end.gpu_hours_expected:,.1f}')} GPU hours",
    }
    if found.best_checkpoint_every is not None:
        best = span(lambda end: f"{end.best_checkpoint_every:,}")
        lines["best interval"] = f"a checkpoint every {best} steps loses least to failures"
    if config.tokens_per_s is None:
        mfu = f"{config.mfu:.0%}" if config.mfu else f"{_FASTEST_MFU:.0%} to {_SLOWEST_MFU:.0%}"
        lines["assumed"] = (
            f"MFU {mfu} of {config.peak_tflops:g} TFLOP/s; measure your speed with"
            " `fitb bench step` and give it as --tokens_per_s"
        )
    return "\n".join(f"{name:18} {line}" for name, line in lines.items())


def _communication_share(end: RunPlan) -> str:
    return f"{end.communication_ms / (end.compute_ms + end.communication_ms):.1%}"


def _duration(hours: float) -> str:
    """Return a duration in hours, or in minutes below two hours."""
    return f"{hours:.1f} h" if hours >= 2 else f"{60 * hours:.0f} min"
