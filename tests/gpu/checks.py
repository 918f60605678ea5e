"""Checks of training on one GPU, each with a deadline; a number that is wrong raises `Wrong`.

`runner.py` runs them in this order: those that tell most in least time come first. What can be told
only by looking (kernels, speeds) is written down.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from setting import Setting, Wrong, one_step, terms_on_cpu

from fitb.base.fsio import read_lines, to_json
from fitb.base.world import World
from fitb.bench.ceiling import matmul_tflops
from fitb.bench.kernels import kernels_of
from fitb.model.peaks import peak_tflops
from fitb.objective.attention import attention_loss
from fitb.training.collectives import on_main
from fitb.training.execution import DTYPES
from fitb.training.setup import work_of

HALVES = ("bf16", "fp16")
FUSED = ("flash", "fmha", "cudnn", "efficient")  # in the names of fused attention kernels


@dataclass(frozen=True)
class Check:
    """A check, and the seconds after which it has failed."""

    run: Callable[[Setting], dict[str, Any]]
    deadline_s: float


def device(at: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    if not at.dry:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability()),
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    at.require("torch multiplies in fp32", not found.get("tf32", False))
    return found


def first_step(at: Setting) -> dict[str, Any]:
    """One step in each precision, against the same terms in fp32 on the CPU."""
    exact = at.variant("fp32", 64, pack_teacher=False)  # packed weights cannot be copied
    expected = terms_on_cpu(exact)
    found = {"fp32": at.close("fp32", one_step(exact)["terms"], expected, 1e-4)}
    for precision in HALVES:
        step = one_step(at.variant(precision, 64))
        found[precision] = at.close(precision, step["terms"], expected, 2e-2)
    return found


def waits(at: Setting) -> dict[str, Any]:
    """How often a step of four micro-batches waits for the device."""
    found = {}
    for kind in ("zero2 bf16", "zero2 fp16", "zero1 bf16", "zero3 bf16"):
        stage, precision = kind.split()
        variant = at.variant(precision, 8, 4, stage, small=True)
        variant.seconds(3)  # some of DeepSpeed's timers start late
        step, batch = next(variant.rows)
        counts = variant.engine.counts(batch)

        def one(engine: Any = variant.engine, of: tuple[Any, ...] = (step, batch, counts)) -> None:
            engine.train_step(*of)

        found[kind] = kernels_of(one, at.device)["waits"] if at.dry else _synchronisations(one)
    at.require(f"ZeRO 2 waits 0 times in bf16 and once in fp16: {found}",
               (found["zero2 bf16"], found["zero2 fp16"]) == (0, 1))  # fmt: skip
    return found


def _synchronisations(work: Callable[[], None]) -> int:
    """Count what torch warns of, as it knows which calls synchronise with the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


def compiled(at: Setting) -> dict[str, Any]:
    """A compiled step against an eager one, and no graph for a padded batch or a second step."""
    found: dict[str, Any] = {}
    for precision in HALVES:
        eager = one_step(at.variant(precision, 64))
        began_s = time.monotonic()
        variant = at.variant(precision, 64, compile=True, pad=True)
        step = one_step(variant)
        found[f"{precision}_first_step_s"] = round(time.monotonic() - began_s, 1)
        found[precision] = at.close(precision, step["terms"], eager["terms"], 2e-2)
        graphs = _graphs()
        number, batch = next(variant.rows)
        assert batch is not None
        batch.attention_mask[0, -3:] = 0
        padded = replace(batch, padded=True)
        for one in (padded, replace(batch, padded=False)):
            variant.engine.train_step(number, one, variant.engine.counts(one))
        found["graphs"] = graphs
        at.require("a padded batch makes no graph", _graphs() == graphs)
    return found


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def profile(at: Setting) -> dict[str, Any]:
    """Launches, waits and the slowest kernels of a compiled step; attention must be fused."""
    variant = at.variant("bf16", 256, compile=True, pad=True)
    variant.seconds(3)
    found = kernels_of(lambda: variant.seconds(1), at.device)
    names = [kernel["name"].lower() for kernel in found["slowest"]]
    found["fp32_matmuls"] = [name for name in names if "sgemm" in name or "simt" in name]
    if not at.dry:
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as profiled_by

        with profiled_by(activities=[ProfilerActivity.CUDA]) as profiled:
            variant.seconds(1)
        kernels = {event.key.lower() for event in profiled.key_averages()}
        found["attention"] = [k[:80] for k in kernels if any(part in k for part in FUSED)]
        at.require("attention is fused", bool(found["attention"]))
    at.require("a step launches kernels", found["launches"] > 0)
    return found


def speed(at: Setting) -> dict[str, Any]:
    """Tokens per second and MFU by micro-batch; bf16 and fp16, 128 and 512 tokens."""
    found: dict[str, Any] = {}
    ceiling = {p: matmul_tflops(DTYPES[p], at.device) for p in HALVES[: 1 if at.dry else 2]}
    name = "cpu" if at.dry else torch.cuda.get_device_name()
    found["ceiling_tflops"] = {p: round(one, 1) for p, one in ceiling.items()}
    found["peak_tflops"] = None if at.dry else peak_tflops(name, "bf16")
    cases = [("bf16", 128, 256, 1), ("bf16", 512, 64, 1)]
    if not at.dry:
        cases += [("fp16", 128, 256, 1), ("fp16", 512, 64, 1), ("bf16", 128, 32, 8)]
        cases += [("bf16", 128, 512, 1), ("bf16", 128, 256, 4), ("fp16", 128, 32, 8)]
    for precision, length, rows, grad_accum in cases:
        if not at.dry:
            torch.cuda.reset_peak_memory_stats()
        variant = at.variant(precision, rows, grad_accum, length=length, compile=True, pad=True)
        variant.seconds(3)
        steps = 1 if at.dry else max(3, 24 // grad_accum)
        tokens_per_s = variant.run.global_batch * length / variant.seconds(steps)
        work = work_of(variant.engine.objective, variant.engine.teacher, variant.run, length)
        found[f"{precision} {length} {rows} x {grad_accum}"] = {
            "tokens_per_s": round(tokens_per_s),
            "mfu": round(tokens_per_s * work.total / (ceiling[precision] * 1e12), 3),
            "memory_gb": None if at.dry else round(torch.cuda.max_memory_allocated() / 1e9, 2),
        }
        at.require("the loss is finite", all(abs(loss) < 1e9 for loss in variant.losses))
        del variant
    return found


def attention_term(at: Setting) -> dict[str, Any]:
    """The attention term in 16 bits against float64, and its time against fp32 products."""
    found: dict[str, Any] = {}
    rows = at.rows(256)
    for size in (26, 64):
        draw = torch.Generator().manual_seed(size)
        drawn = [torch.randn(rows, 128, 12, s, generator=draw) for s in (size, size, 64, 64)]
        for precision in HALVES:
            heads = [each.to(at.device, DTYPES[precision]).transpose(1, 2) for each in drawn]
            student = [each.detach().requires_grad_() for each in heads[:2]]
            loss = attention_loss((student[0], student[1]), (heads[2], heads[3]), None, None)
            loss.backward()
            few = [each[:4].double().cpu().detach() for each in heads]
            few = [each.requires_grad_(place < 2) for place, each in enumerate(few)]
            scores = [few[i] @ few[i + 1].mT / few[i].shape[-1] ** 0.5 for i in (0, 2)]
            exact = (scores[1] - scores[0]).square().sum()
            exact.backward()
            ours = attention_loss(*_pairs(heads, 4), None, None)
            at.close(f"value at {size}", ours, exact.detach(), 1e-2)
            for mine, theirs in zip(student, few, strict=False):
                assert mine.grad is not None
                at.close(f"gradient at {size}", mine.grad[:4], theirs.grad, 2e-2)
            wide = [each.float() for each in heads]
            fast, slow = (_ms(lambda h=h: attention_loss(*_pairs(h, rows), None, None), at)
                          for h in (heads, wide))  # fmt: skip
            found[f"{precision} {size}"] = {"ms": fast, "fp32_ms": slow}
    return found


def _pairs(heads: list[torch.Tensor], rows: int) -> tuple[Any, Any]:
    some = [each[:rows] for each in heads]
    return (some[0], some[1]), (some[2], some[3])


def _ms(work: Callable[[], Any], at: Setting, times: int = 10) -> float:
    for _ in range(2):
        work()
    _wait(at)
    began_s = time.perf_counter()
    for _ in range(times):
        work()
    _wait(at)
    return round(1e3 * (time.perf_counter() - began_s) / times, 3)


def _wait(at: Setting) -> None:
    if not at.dry:
        torch.cuda.synchronize()


def fp8(at: Setting) -> dict[str, Any]:
    """An fp8 teacher's states beside those in bf16, and the speed of both."""
    if not at.dry and torch.cuda.get_device_capability() < (8, 9):
        return {"skipped": "this GPU has no 8-bit matmuls"}
    from fitb.model.packed_linear import to_float8

    variant = at.variant("bf16", 64)
    teacher = variant.engine.teacher
    assert teacher is not None
    _, batch = next(variant.rows)
    assert batch is not None
    batch = batch.to(at.device)
    with torch.no_grad():
        before = teacher(batch).hidden[-1].float()
        before_ms = _ms(lambda: teacher(batch), at, 3)
        to_float8(teacher.model, at.device)
        after = teacher(batch).hidden[-1].float()
        after_ms = _ms(lambda: teacher(batch), at, 3)
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1).mean()
    at.close("cosine of the last states", cosine, 1.0, 2e-2)
    return {"cosine": float(cosine), "bf16_ms": before_ms, "fp8_ms": after_ms}


def matrix(at: Setting) -> dict[str, Any]:
    """Two steps of small models under each ZeRO stage and precision."""
    found: dict[str, Any] = {}
    for precision in HALVES:
        losses = {}
        for stage in ("zero1", "zero2", "zero2_offload", "zero3"):
            variant = at.variant(precision, 8, 2, stage, small=True)
            losses[stage] = [sum(one_step(variant)["terms"]) for _ in range(2)]
            whole = dict(variant.engine.state.full_tensors())
            finite = all(bool(tensor.isfinite().all()) for tensor in whole.values())
            at.require(f"{stage} {precision} has all weights, finite", finite and len(whole) > 10)
        for stage, found_losses in losses.items():
            at.close(f"{stage} {precision}", found_losses, losses["zero2"], 2e-2)
        found[precision] = losses
    return found


def overflow(at: Setting) -> dict[str, Any]:
    """A loss scale that overflows: steps are skipped, weights stay, the scale halves, it trains."""
    variant = at.variant("fp16", 8, small=True)
    optimizer: Any = variant.engine._engine.optimizer
    optimizer.loss_scaler.cur_scale = 2.0**24
    begun = _weights(variant)
    first = one_step(variant)
    at.require("the first step is skipped", first["skipped"] and first["norm"] is None)
    at.close("weights after a skipped step", _weights(variant), begun, 0)
    steps = [one_step(variant) for _ in range(25)]
    at.require("the scale falls", variant.engine.loss_scale < 2.0**24)
    at.require("then it trains", not steps[-1]["skipped"])
    at.require("weights move", not torch.equal(_weights(variant), begun))
    skipped = 1 + sum(step["skipped"] for step in steps)
    return {"skipped": skipped, "loss_scale": variant.engine.loss_scale}


def _weights(variant: Any) -> torch.Tensor:
    parameters = variant.engine.objective.parameters()
    return torch.cat([each.detach().float().flatten().cpu() for each in parameters])


def collectives(at: Setting) -> dict[str, Any]:
    """A group of one rank on the device's backend, and a gloo group beside it."""
    at.variant("bf16", 8, small=True)
    ones = torch.ones(3, dtype=torch.float64, device=at.device)
    dist.all_reduce(ones)
    group = dist.new_group(backend="gloo")
    on_cpu = torch.full((2,), 7.0, dtype=torch.float64)
    dist.all_reduce(on_cpu, group=group)
    at.close("sum on the device", ones, torch.ones(3), 0)
    at.close("sum by gloo", on_cpu, torch.full((2,), 7.0), 0)
    at.require("rank 0 answers", on_main(lambda: True, World(0, 1)))
    return {"backend": dist.get_backend()}


def repeated(at: Setting) -> dict[str, Any]:
    """The same ten steps twice: equal with deterministic kernels, how far apart without."""
    found: dict[str, Any] = {}
    try:
        for deterministic in (False, True):
            weights = []
            for _ in range(2):
                variant = at.variant("bf16", 16, small=True, deterministic=deterministic)
                variant.seconds(10)
                weights.append(_weights(variant))
            apart = float((weights[0] - weights[1]).abs().max())
            found["deterministic" if deterministic else "as_it_is"] = apart
    finally:
        torch.use_deterministic_algorithms(False)
    at.close("deterministic runs are apart", [1 + found["deterministic"]], [1.0], 0)
    return found


def signalled(at: Setting) -> dict[str, Any]:
    """SIGUSR1 to every process of a run while it compiles: it saves and leaves with 85."""
    run = at.out / "signalled"
    process = subprocess.Popen(
        _train(at, run, steps=40),
        start_new_session=True,
        **_apart(at),
        stderr=subprocess.DEVNULL,
    )
    try:
        _until(lambda: (run / "config.yaml").exists(), 120, process)
        time.sleep(0.5 if at.dry else 12.0)  # models are loaded, the compiler runs
        os.killpg(process.pid, signal.SIGUSR1)
        code = process.wait(150)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    at.require(f"exit code 85, found {code}", code == 85)
    return {"exit_code": code}


def memory(at: Setting) -> dict[str, Any]:
    """Peak memory of a compiled step by rows."""
    found: dict[str, Any] = {}
    for rows in (32,) if at.dry else (32, 256, 512):
        if not at.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        variant = at.variant("bf16", rows, compile=True, pad=True)
        variant.seconds(2)
        found[str(rows)] = 0.0 if at.dry else round(torch.cuda.max_memory_allocated() / 1e9, 2)
        del variant
    at.require("256 rows fit into 40 GB", found.get("256", 0.0) < 40)
    return found


def train(at: Setting) -> dict[str, Any]:
    """`fitb train`: the loss falls, few steps are skipped, a stopped run ends as a whole one."""
    found: dict[str, Any] = {}
    steps = 10 if at.dry else 300
    for precision in ("bf16",) if at.dry else HALVES:
        runs = {name: at.out / f"{name}-{precision}" for name in ("whole", "stopped")}
        commands = {
            name: _train(at, run, steps, ("--precision", precision)) for name, run in runs.items()
        }
        whole = subprocess.run(commands["whole"], check=False, **_apart(at))
        at.require("it ends", whole.returncode == 0)
        stopped = subprocess.Popen(commands["stopped"], **_apart(at))
        log = runs["stopped"] / "metrics.jsonl"
        _until(lambda log=log: log.exists() and log.stat().st_size > 0, 240, stopped)
        stopped.send_signal(signal.SIGUSR1)
        at.require("a stopped run leaves with 85", stopped.wait(120) == 85)
        subprocess.run(commands["stopped"], check=True, **_apart(at))
        metrics = {name: list(read_lines(run / "metrics.jsonl")) for name, run in runs.items()}
        first, last = metrics["whole"][0], metrics["whole"][-1]
        at.require("the loss falls", last["train/loss"] < first["train/loss"])
        at.require("few steps are skipped", last.get("optim/skipped_steps", 0) <= 0.1 * steps)
        ends = [one[-1]["train/loss"] for one in metrics.values()]
        found[precision] = {
            "loss": [first["train/loss"], last["train/loss"]],
            "resumed_apart": at.close("the end of a stopped run", ends[1], ends[0], 2e-2),
            "tokens_per_s": last.get("perf/tokens_per_s"),
            "data_wait_frac": last.get("perf/data_wait_frac"),
        }
    return found


def _train(at: Setting, run: Any, steps: int, more: tuple[str, ...] = ()) -> list[str]:
    teacher, student = at.sizes()
    flags = {
        "run_dir": run,
        "steps": steps,
        "global_batch": at.rows(256),
        "data.shards": at.shards / "128",
        "model.teacher": to_json(asdict(teacher)),
        "model.student": to_json(asdict(student)),
        "model.dropout": 0,
        "optim.warmup_steps": steps // 10,
        "eval.every_steps": 0,
        "checkpoint.every_steps": 0,
        "track.wandb": "disabled",
        "track.every_steps": 1,
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "fitb", "train", *words, *more]


def _apart(at: Setting) -> dict[str, Any]:
    """Outside this process's group, and where no source tree stands before what is installed."""
    ours = World().env("", 0)
    return {"env": {k: v for k, v in os.environ.items() if k not in ours}, "cwd": at.out}


def _until(ready: Callable[[], bool], seconds: float, process: Any) -> None:
    end_s = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end_s or process.poll() is not None:
            raise Wrong(f"a run did not get so far within {seconds:g} s: {process.poll()}")
        time.sleep(0.1)


CHECKS = {
    "device": Check(device, 30),
    "first_step": Check(first_step, 60),
    "waits": Check(waits, 45),
    "compiled": Check(compiled, 150),
    "profile": Check(profile, 60),
    "speed": Check(speed, 150),
    "attention_term": Check(attention_term, 30),
    "fp8": Check(fp8, 40),
    "matrix": Check(matrix, 60),
    "overflow": Check(overflow, 30),
    "collectives": Check(collectives, 20),
    "repeated": Check(repeated, 40),
    "memory": Check(memory, 90),
    "signalled": Check(signalled, 180),
    "train": Check(train, 240),
}
