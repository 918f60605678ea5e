"""Tokens per second of a training step, its parts and its MFU: `fitb bench step`.

It times what `fitb train` runs: shards, the row stream, the all-reduced stop flag, DeepSpeed. With
`baseline` an unfused baseline (unfused.py) takes turns with it on the same rows; with `switches`
so does a run with each switch of `speed` inverted.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fitb.base.errors import ConfigError
from fitb.base.world import World
from fitb.bench.bench_config import StepBenchConfig
from fitb.bench.ceiling import copy_gb_per_s, matmul_tflops
from fitb.bench.kernels import host_ms, kernels_of
from fitb.bench.parts import Timeline, watched
from fitb.bench.processes import in_ranks, say
from fitb.bench.text import shards_of_docstrings
from fitb.bench.timing import machine, peak_rss_gb, ratios, reset_peak_rss, spread
from fitb.bench.unfused import UnfusedObjective, UnfusedTeacher
from fitb.config import Config, DataConfig, EvalConfig, Geometry, ModelConfig, SpeedConfig
from fitb.corpus.tokenizer import load_tokenizer
from fitb.data.masking import Vocabulary
from fitb.data.stream import RowStream
from fitb.model.attention import choose
from fitb.model.flops import VOCABULARY
from fitb.objective.objective import Objective
from fitb.shards.shard_set import ShardSet
from fitb.training.collectives import on_main
from fitb.training.defaults import resolved
from fitb.training.engine import Engine
from fitb.training.execution import DTYPES
from fitb.training.setup import load_models, work_of
from fitb.training.stop import StopFlag
from fitb.training.zero import check_precision, leave_distributed, start_distributed

_HOST_STEPS = 9
_STEPS = {"cpu": 2, "cuda": 20}  # of a run


def bench(config: StepBenchConfig) -> dict[str, Any]:
    """Measure on every rank; return the result of rank 0."""
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as name:
        shards = config.shards or str(shards_of_docstrings(Path(name), config.length, VOCABULARY))
        length = ShardSet.open(shards, "train").length
        if length != config.length:
            raise ConfigError(
                f"length={config.length}, but {shards} holds rows of {length};"
                f" give --length {length}"
            )
        config = replace(config, shards=shards)
        return in_ranks(config, "step", config.processes, _measure)


def _measure(config: StepBenchConfig, world: World) -> dict[str, Any]:
    device, run = start(config, world)
    steps = config.steps or _STEPS[device.type]
    tokens = run.global_batch * config.length
    variants: dict[str, Variant] = {}
    peak_gb = 0.0
    settings = _variants(config, run, device)
    say(
        f"{', '.join(settings)}: {config.repeats} x {steps} steps each, {run.precision},"
        f" {run.rows_per_pass} rows of {config.length} tokens per micro-batch"
    )
    for name, (changed, unfused) in settings.items():
        variants[name] = Variant(changed, unfused, world, device)
        variants[name].seconds(2)  # compiles, fills pools
        if name == "fitb":
            num_steps = 3 * len(settings) + config.repeats * (len(settings) + 2) * (2 + steps)
            minutes = math.ceil(num_steps * variants[name].seconds(1) / 60)
            say(f"about {minutes} min, after compiling")
        reset_peak_rss(device)
        variants[name].seconds(1)
        peak_gb = peak_gb or peak_rss_gb(device)  # of fitb alone: the first variant
    times: dict[str, list[float]] = {name: [] for name in variants}
    parts: list[dict[str, float]] = []
    unwatched: list[float] = []
    for _ in range(config.repeats):
        for name, variant in variants.items():
            variant.seconds(2)  # warms up after the others' turn
            times[name].append(variant.seconds(steps))
            if name == "fitb":
                parts.append(variant.parts(steps))
                unwatched.append(variant.seconds(steps))
    row = {"bench": "step", **machine(), **_setting(config, run, world, device)}
    row |= _figures(times, tokens) | _parts(parts, unwatched)
    row |= _efficiency(variants["fitb"], world, row["tokens_per_s"]["median"])
    row["peak_memory_gb"] = peak_gb
    if config.kernels:
        say("kernels, and the work of the host")
        row["kernels"] = kernels_of(variants["fitb"].next_update(), device)
        row["host_ms"] = host_ms(lambda number: _host_s(run, number, world, device), (1, 4))
    row["loss"] = {name: variant.losses[0] for name, variant in variants.items()}
    leave_distributed()
    return row


def _host_s(run: Config, micro_batches: int, world: World, device: torch.device) -> float:
    """Seconds of a step of models so narrow, one row each, that the host's work is all there is."""
    teacher, student = _narrow(run.model.teacher), _narrow(run.model.student)
    model = replace(run.model, teacher=teacher, student=student)
    run = replace(run, model=model, micro_batch=1, global_batch=micro_batches * world.size)
    variant = Variant(run, False, world, device)
    variant.seconds(3)
    return statistics.median(variant.seconds(1) for _ in range(_HOST_STEPS))


def _narrow(geometry: Any) -> Geometry:
    width = 2 * geometry.num_attention_heads
    return Geometry(geometry.num_hidden_layers, width, width, geometry.num_attention_heads)


def _setting(
    config: StepBenchConfig, run: Config, world: World, device: torch.device
) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "precision": run.precision,
        "baseline_precision": config.baseline_precision or run.precision,
        "length": config.length,
        "micro_batch": run.micro_batch,
        "grad_accum": config.grad_accum,
        "ds_config": run.ds_config,
    }


def _figures(times: dict[str, list[float]], tokens: int) -> dict[str, Any]:
    """Speeds of every variant, and its ratio to fitb's, turn by turn."""
    speeds = {name: [tokens / s for s in seconds] for name, seconds in times.items()}
    figures: dict[str, Any] = {
        "step_s": spread(times["fitb"], 4),
        "tokens_per_s": spread(speeds["fitb"], 0),
    }
    if "plain" in speeds:
        figures["baseline_tokens_per_s"] = spread(speeds["plain"], 0)
    over = {name: ratios(speeds["fitb"], theirs) for name, theirs in speeds.items()}
    del over["fitb"]
    if "plain" in over:
        figures["ratio"] = over.pop("plain")
    if over:
        figures["switched"] = over
    return figures


def _parts(parts: list[dict[str, float]], unwatched: list[float]) -> dict[str, Any]:
    """Median seconds of each part, and the sum of the parts over the time of an unhooked step."""
    names = sorted({name for one in parts for name in one})
    medians = {n: statistics.median(one.get(n, 0.0) for one in parts) for n in names}
    total = sum(medians.values())
    return {
        "parts_s": {name: round(value, 5) for name, value in medians.items()},
        "parts_over_step": ratios([sum(one.values()) for one in parts], unwatched, 4),
        "data_wait_frac": round(medians.get("data_wait", 0.0) / total, 5),
    }


def _efficiency(variant: Variant, world: World, tokens_per_s: float) -> dict[str, Any]:
    """FLOP per token of the model, and MFU against the measured peak of this device.

    Ranks that share a machine measure its peak at the same time, each on its own cores.
    """
    engine, run, device = variant.engine, variant.run, variant.device
    work = work_of(engine.objective, engine.teacher, run, variant.length)
    ceiling = matmul_tflops(DTYPES[run.precision], device)
    return {
        "mflop_per_token": round(work.total / 1e6, 2),
        "ceiling_tflops": round(ceiling, 4),
        "ceiling_copy_gb_per_s": round(copy_gb_per_s(device), 1),
        "mfu": round(tokens_per_s * work.total / world.size / (ceiling * 1e12), 4),
    }


def start(config: StepBenchConfig, world: World) -> tuple[torch.device, Config]:
    """Initialise torch.distributed; return this rank's device and the run's configuration."""
    run = Config(
        run_dir="",
        precision=config.precision,
        micro_batch=config.micro_batch,
        global_batch=world.size,
        ds_config=config.ds_config,
        data=DataConfig(shards=config.shards or ""),
        model=ModelConfig(teacher=config.teacher, student=config.student, dropout=config.dropout),
        objective=config.objective,
        eval=EvalConfig(every_steps=0),
        speed=config.speed,
    )
    device = start_distributed(run, world)
    run = on_main(lambda: resolved(run, device), world)
    check_precision(run.precision)
    rows = run.rows_per_pass * config.grad_accum * world.size
    return device, replace(run, global_batch=rows)


class Variant:
    """One way to execute the step, with its own weights, rows and engine.

    Args:
        run: configuration; `run.speed` selects how the step is executed.
        unfused: whether to train the unfused baseline.
        world: this rank.
        device: device of this rank.
    """

    def __init__(self, run: Config, unfused: bool, world: World, device: torch.device) -> None:
        self.run, self.device = run, device
        shards = ShardSet.open(run.data.shards, "train")
        self.length = shards.length
        tokenizer = load_tokenizer(shards.tokenizer_folder)
        student, teacher = load_models(run, shards, tokenizer)
        assert teacher is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            objective: Any = Objective(student.model, teacher.model, run.objective)
        tap: Any = objective.teacher_tap(teacher.model)
        if unfused:
            objective, tap = UnfusedObjective(objective), UnfusedTeacher(teacher.model)
        self.engine = Engine(objective, tap, run, world, device, shards.length)
        self._stream = RowStream(
            shards,
            vocabulary=Vocabulary.of(tokenizer),
            mask=run.mask,
            world=world,
            global_batch=run.global_batch,
            window_shards=run.data.window_shards,
            prefetch_steps=run.data.prefetch_steps,
            seed=run.seed,
            pin=device.type == "cuda",
        )
        self.rows = self._stream.iter_from(0, 10**9)
        self._stop = StopFlag()
        self.losses: list[float] = []

    def seconds(self, steps: int, timeline: Timeline | None = None) -> float:
        """Run `steps` training steps; return the mean seconds per step."""
        begin_s = time.perf_counter()
        results = [self._step(timeline) for _ in range(steps)]
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        took_s = time.perf_counter() - begin_s
        for result in results:
            means = result.sums.cpu().double() / result.counts.clamp(min=1)
            self.losses.append(float((means * self.engine.weights).sum()))
        return took_s / steps

    def _step(self, timeline: Timeline | None) -> Any:
        part = timeline.part if timeline else lambda _: contextlib.nullcontext()
        with part("data_wait"):
            step, batch = next(self.rows)
        assert batch is not None  # nobody gives up
        counts = self.engine.counts(batch)
        with part("communication"):
            _, counts, _ = self._stop.agree(counts)
        return self.engine.train_step(step, batch, counts)

    def next_update(self) -> Callable[[], Any]:
        """Return a function that makes the next update, again at each call, and nothing else."""
        step, batch = next(self.rows)
        assert batch is not None
        counts = self.engine.counts(batch)
        return lambda: self.engine.train_step(step, batch, counts)

    def parts(self, steps: int) -> dict[str, float]:
        """Run `steps` training steps; return the mean seconds per step of each part."""
        timeline = Timeline(self.device)
        with watched(self.engine, timeline):
            self.seconds(steps, timeline)
        return {name: total / steps for name, total in timeline.seconds().items()}


def _variants(
    config: StepBenchConfig, run: Config, device: torch.device
) -> dict[str, tuple[Config, bool]]:
    """Return the variants by name: configuration, and whether it is the unfused baseline."""
    variants = {"fitb": (run, False)}
    if config.baseline:
        unoptimised = SpeedConfig(
            attention="eager",
            compile=False,
            pad=False,
            teacher_rows=run.micro_batch,
            pack_teacher=False,
        )
        precision = config.baseline_precision or run.precision
        variants["plain"] = (replace(run, precision=precision, speed=unoptimised), True)
    for name, changes in _switches(config, run, device) if config.switches else ():
        variants[name] = (replace(run, speed=replace(run.speed, **changes)), False)
    return variants


def _switches(
    config: StepBenchConfig, run: Config, device: torch.device
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each switch of `speed`, and its inverted value."""
    dtype = DTYPES[run.precision]
    chosen = choose(config.speed.attention, device, dtype, config.length)
    yield "attention", {"attention": "sdpa" if chosen == "eager" else "eager"}
    on_gpu = device.type == "cuda"
    for name in ("compile", "pad"):
        now = getattr(config.speed, name)
        yield name, {name: not (on_gpu if now is None else now)}
    if on_gpu and config.speed.compile is not False and run.ds_config != "zero3":
        yield "cuda_graphs", {"cuda_graphs": not config.speed.cuda_graphs}
    yield "fused_optimizer", {"fused_optimizer": not config.speed.fused_optimizer}
    if config.grad_accum > 1 and config.speed.teacher_rows is None:
        rows = run.rows_per_pass * (1 if on_gpu else config.grad_accum)
        yield "teacher_rows", {"teacher_rows": rows}
    if not on_gpu:
        yield "pack_teacher", {"pack_teacher": not config.speed.pack_teacher}
