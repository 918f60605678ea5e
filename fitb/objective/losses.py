"""Loss terms as pure functions, each of which returns an undivided sum in fp32.

Legend: B rows, L length, D hidden, H heads, M masked positions, V vocabulary. A sum is divided
once, by its count over the global batch (Objective.counts), so that a loss does not depend on
gradient accumulation, padding or world size. TinyBERT is Jiao et al. 2020 (https://arxiv.org/abs/1909.10351).
"""

from __future__ import annotations

from typing import Any

import torch

from fitb.data.masking import IGNORE_INDEX

_BLOCK = 2**20  # logits at a time on a CPU: 4 MB, which fit into caches
_GPU_BLOCK = 2**26  # at a time on a GPU where nothing is fused: 256 MB


def hidden_loss(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Squared error of (projected) hidden states or embeddings (TinyBERT, eq. 8 and 9).

    Args:
        student: (B, L, D) float, after the projection to the teacher's width.
        teacher: (B, L, D) float.
        mask: (B, L), 1 on tokens that count, 0 elsewhere; None if all count.
    Returns: scalar fp32, to be divided by tokens x D for the mean.
    """
    difference = student.float() - teacher.float()
    if mask is not None:
        difference = difference.masked_fill(mask[..., None] == 0, 0.0)
    return difference.square().sum()


def slot_losses(
    student: torch.Tensor, teacher: torch.Tensor | None, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Soft and hard cross-entropy and top-1 hits at masked positions, in one pass over the logits.

    The soft loss is the cross-entropy of student and teacher (TinyBERT, eq. 10) at a temperature,
    multiplied by its square to keep the scale of its gradient (Hinton et al. 2015, section 2.1);
    the hard loss is that of the true tokens (Devlin et al. 2019, section 3.1).

    Args:
        student: (M, V) float, logits.
        teacher: (M, V) float, logits; None: the soft loss is 0.
        labels: (M,) int64, true token ids; positions with IGNORE_INDEX do not count.
        temperature: temperature of the soft loss.
    Returns: soft loss, hard loss, and number of positions whose most likely token is the true one:
        scalars, fp32, to be divided by the counted positions; zeros with a graph if there are none.
    """
    sums: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    sums = _SlotLosses.apply(student, teacher, labels, temperature)  # type: ignore[no-untyped-call]
    return sums


class _SlotLosses(torch.autograd.Function):
    """Saves the logits and up to three numbers per position; probabilities exist for one block."""

    @staticmethod
    def forward(
        ctx: Any,
        student: torch.Tensor,
        teacher: torch.Tensor | None,
        labels: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sums = torch.zeros(3, dtype=torch.float32, device=student.device)
        normalisers = []
        for rows in _blocks(student):
            counted = labels[rows] != IGNORE_INDEX
            logits = student[rows].float()
            at_label = logits.gather(1, labels[rows].clamp(min=0)[:, None])[:, 0]
            log_z = logits.logsumexp(1)
            hits = (logits.argmax(1) == labels[rows]) & counted
            parts = [torch.zeros_like(log_z), log_z - at_label, hits.float()]
            kept = [log_z]
            if teacher is not None:
                heated = logits / temperature if temperature != 1 else logits
                soft = teacher[rows].float() / temperature
                log_heated = heated.logsumexp(1) if temperature != 1 else log_z
                highest = soft.amax(1)
                unnormalised = (soft - highest[:, None]).exp_()
                total = unnormalised.sum(1)
                log_soft = highest + total.log()
                expected = torch.linalg.vecdot(unnormalised, heated) / total
                parts[0] = (log_heated - expected) * temperature**2
                kept += [log_heated, log_soft]
            sums += torch.stack(parts).masked_fill(~counted, 0.0).sum(1)
            normalisers.append(torch.stack(kept))
        ctx.save_for_backward(student, teacher, labels, torch.cat(normalisers, 1))
        ctx.temperature = temperature
        return sums[0], sums[1], sums[2]

    @staticmethod
    def backward(
        ctx: Any, soft_grad: torch.Tensor, hard_grad: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        student, teacher, labels, normalisers = ctx.saved_tensors
        gradient = torch.empty_like(student)
        for rows in _blocks(student):
            counted = labels[rows] != IGNORE_INDEX
            logits = student[rows].float()
            slope = (logits - normalisers[0, rows, None]).exp_()
            slope.scatter_add_(
                1, labels[rows].clamp(min=0)[:, None], slope.new_full((len(slope), 1), -1.0)
            )
            slope *= hard_grad
            if teacher is not None:
                heat = ctx.temperature
                apart = (logits / heat - normalisers[1, rows, None]).exp_()
                apart -= (teacher[rows].float() / heat - normalisers[2, rows, None]).exp_()
                slope += apart * (soft_grad * heat)
            gradient[rows] = slope.masked_fill_(~counted[:, None], 0.0).to(student.dtype)
        return gradient, None, None, None


def _blocks(logits: torch.Tensor) -> list[slice]:
    """Slices of rows processed together, to bound memory; all in a compiled graph on a GPU."""
    num_rows, width = logits.shape
    most = _BLOCK if logits.device.type == "cpu" else _GPU_BLOCK
    fused = logits.device.type != "cpu" and torch.compiler.is_compiling()
    step = max(1, num_rows if fused else most // width)
    return [slice(begin, begin + step) for begin in range(0, num_rows, step)]
