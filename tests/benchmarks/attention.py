"""Time and memory of the attention term of one layer, beside the form with L x L scores.

    python tests/benchmarks/attention.py --lengths '[128, 512]' --precision fp32

Forward and backward; memory is what tensors hold at most, counted by the profiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fitb.bench.timing import machine, ratios, seconds, spread
from fitb.objective.attention import attention_loss
from fitb.training.execution import DTYPES

_TEACHER_HEAD, _HEADS = 64, 12  # of BERT-base and TinyBERT-4


def bench(
    lengths: tuple[int, ...] = (128, 512, 2048),
    rows: int = 2,
    precision: str = "bf16",
    repeats: int = 5,
    student_head: int = 26,
) -> dict[str, Any]:
    """Measure both forms at each length, turn by turn, and how memory grows between them.

    Args:
        lengths: tokens in a row, ascending.
        rows: of a batch, the same at every length.
        precision: of queries and keys; sums are in fp32.
        repeats: runs of each form.
        student_head: width of a student's head; at 64, the teacher's, the term takes the form of
            differences.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {"bench": "attention", **machine(), "rows": rows}
    found |= {"precision": precision, "student_head": student_head}
    memory: dict[str, list[float]] = {"fitb": [], "plain": []}
    for length in lengths:
        leaves, teacher = _inputs(rows, length, DTYPES[precision], device, student_head)
        forms = {"fitb": attention_loss, "plain": plain_attention_loss}
        work = {name: _step(form, leaves, teacher) for name, form in forms.items()}
        times: dict[str, list[float]] = {name: [] for name in forms}
        for turn in range(repeats + 1):
            for name, run in work.items():
                times[name].append(1e3 * seconds(run, device))
                if turn == 0:
                    memory[name].append(round(peak_tensor_mb(run, device), 3))
        found[f"length_{length}"] = {
            **{f"{name}_ms": spread(taken[1:]) for name, taken in times.items()},
            "ratio": ratios(times["plain"][1:], times["fitb"][1:]),
            **{f"{name}_mb": megabytes[-1] for name, megabytes in memory.items()},
        }
    found["memory_growth"] = {
        f"{before}_to_{after}": {
            "length": round(after / before, 3),
            **{name: round(mb[place + 1] / mb[place], 3) for name, mb in memory.items()},
        }
        for place, (before, after) in enumerate(zip(lengths, lengths[1:], strict=False))
    }
    return found


def plain_attention_loss(
    student: tuple[torch.Tensor, torch.Tensor],
    teacher: tuple[torch.Tensor, torch.Tensor],
    query_mask: None,
    key_mask: None,
) -> torch.Tensor:
    """The same sum from both L x L matrices; no row is padded here."""
    scores_s, scores_t = (
        (query @ key.mT).float() * query.shape[-1] ** -0.5 for query, key in (student, teacher)
    )
    return (scores_s - scores_t).square().sum()


def peak_tensor_mb(work: Callable[[], Any], device: torch.device) -> float:
    """Run and return the most memory that tensors made on the way held at one time, in MB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    held = peak = 0
    events = profiled.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 1e6


def _inputs(
    rows: int, length: int, dtype: torch.dtype, device: torch.device, student_head: int
) -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Queries and keys as projections leave them: of a student, with gradients, of a teacher."""
    draw = torch.Generator().manual_seed(length)

    def states(size: int) -> torch.Tensor:
        drawn = torch.randn(rows, length, _HEADS, size, generator=draw)
        return drawn.to(device, dtype).transpose(1, 2)

    leaves = [states(student_head).requires_grad_() for _ in range(2)]
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


if __name__ == "__main__":
    from command import print_json

    print_json(bench)
