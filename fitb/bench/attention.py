"""The attention term beside the form with L x L scores: `fitb bench attention`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from fitb.bench.config import AttentionConfig as BenchConfig
from fitb.bench.measure import Spread, machine, peak_tensor_mb, render, seconds
from fitb.distill.attention import attention_loss
from fitb.train.execution import DTYPES

__all__ = ["BenchConfig", "bench", "render"]

_TEACHER_HEAD, _STUDENT_HEAD, _HEADS = 64, 26, 12  # of BERT-base and TinyBERT-4


def bench(config: BenchConfig) -> dict[str, Any]:
    """Measure both forms at each length, turn by turn, and how memory grows between them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    row: dict[str, Any] = {
        "bench": "attention",
        **machine(),
        "rows": config.rows,
        "precision": config.precision,
    }
    memory: dict[str, list[float]] = {"fitb": [], "plain": []}
    for length in config.lengths:
        leaves, teacher = _inputs(config, length, device)
        forms = {"fitb": attention_loss, "plain": plain_attention_loss}
        work = {name: _step(form, leaves, teacher) for name, form in forms.items()}
        times: dict[str, list[float]] = {name: [] for name in forms}
        for turn in range(config.repeats + 1):
            for name, run in work.items():
                times[name].append(1e3 * seconds(run, device))
                if turn == 0:
                    memory[name].append(round(peak_tensor_mb(run, device), 3))
        row[f"length_{length}"] = {
            **{f"{name}_ms": asdict(Spread.of(t[1:])) for name, t in times.items()},
            "ratio": asdict(
                Spread.of(
                    [b / a for a, b in zip(times["fitb"][1:], times["plain"][1:], strict=True)]
                )
            ),
            **{f"{name}_mb": megabytes[-1] for name, megabytes in memory.items()},
        }
    row["memory_growth"] = {
        f"{before}_to_{after}": {
            "length": round(after / before, 3),
            **{name: round(mb[place + 1] / mb[place], 3) for name, mb in memory.items()},
        }
        for place, (before, after) in enumerate(
            zip(config.lengths, config.lengths[1:], strict=False)
        )
    }
    return row


def plain_attention_loss(
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
    query_mask: torch.Tensor | None,
    key_mask: torch.Tensor | None,
) -> torch.Tensor:
    """The same sum from both L x L matrices; no row is padded here."""
    assert query_mask is None and key_mask is None
    scores_s, scores_t = (
        (query @ key.mT).float() * query.shape[-1] ** -0.5 for query, key in (student, teacher)
    )
    total: torch.Tensor = (scores_s - scores_t).square().sum()
    return total


def _inputs(
    config: BenchConfig, length: int, device: torch.device
) -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Queries and keys as projections leave them: of a student, with gradients, of a teacher."""
    draw = torch.Generator().manual_seed(length)

    def states(size: int) -> torch.Tensor:
        drawn = torch.randn(config.rows, length, _HEADS, size, generator=draw)
        return drawn.to(device, DTYPES[config.precision]).transpose(1, 2)

    leaves = [states(_STUDENT_HEAD).requires_grad_() for _ in range(2)]
    return leaves, (states(_TEACHER_HEAD), states(_TEACHER_HEAD))


def _step(
    form: Callable[..., torch.Tensor],
    leaves: list[torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
) -> Callable[[], None]:
    def run() -> None:
        loss = form((leaves[0], leaves[1]), teacher, None, None)
        torch.autograd.grad(loss, leaves)

    return run
