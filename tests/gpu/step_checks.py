"""Checks of what a step computes on a GPU, against fp32 on the CPU and against itself."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from setting import HALVES, Setting, milliseconds, one_step, terms_on_cpu

from fitb.base.world import World
from fitb.bench.kernels import kernels_of
from fitb.model.packed_linear import to_float8
from fitb.objective.attention import attention_loss
from fitb.training.collectives import on_main
from fitb.training.execution import DTYPES


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
        eager = one_step(at.variant(precision, 256))
        began_s = time.monotonic()
        variant = at.variant(precision, 256, compile=True, pad=True)
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
            fast, slow = (milliseconds(lambda h=h: attention_loss(*_pairs(h, rows), None, None), at)
                          for h in (heads, wide))  # fmt: skip
            found[f"{precision} {size}"] = {"ms": fast, "fp32_ms": slow}
    return found


def _pairs(heads: list[torch.Tensor], rows: int) -> tuple[Any, Any]:
    some = [each[:rows] for each in heads]
    return (some[0], some[1]), (some[2], some[3])


def fp8(at: Setting) -> dict[str, Any]:
    """An fp8 teacher's states beside those in bf16, and the speed of both."""
    if not at.dry and torch.cuda.get_device_capability() < (8, 9):
        return {"skipped": "this GPU has no 8-bit matmuls"}
    variant = at.variant("bf16", 64)
    teacher = variant.engine.teacher
    assert teacher is not None
    _, batch = next(variant.rows)
    assert batch is not None
    batch = batch.to(at.device)
    with torch.no_grad():
        before = teacher(batch).hidden[-1].float()
        before_ms = milliseconds(lambda: teacher(batch), at, 3)
        to_float8(teacher.model, at.device)
        after = teacher(batch).hidden[-1].float()
        after_ms = milliseconds(lambda: teacher(batch), at, 3)
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
    """The same ten steps twice: equal with deterministic kernels, how far apart without.

    In processes of their own: cuBLAS reads at its first call whether it must be deterministic.
    """
    apart = {}
    for deterministic in (False, True):
        words = [__file__, str(at.shards), str(at.dry), str(deterministic)]
        ran = subprocess.run(
            [sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True, **at.apart()
        )
        apart["deterministic" if deterministic else "as_it_is"] = float(ran.stdout.split()[-1])
    at.close("deterministic runs", [1 + apart["deterministic"]], [1.0], 0)
    return apart


def _apart_after_ten_steps(at: Setting, deterministic: bool) -> float:
    weights = []
    for _ in range(2):
        variant = at.variant("bf16", 16, small=True, deterministic=deterministic)
        variant.seconds(10)
        weights.append(_weights(variant))
    return float((weights[0] - weights[1]).abs().max())


if __name__ == "__main__":
    folder, is_dry, is_deterministic = sys.argv[1:]
    setting = Setting(Path(folder), is_dry == "True", False, Path(folder))
    print(_apart_after_ten_steps(setting, is_deterministic == "True"))
