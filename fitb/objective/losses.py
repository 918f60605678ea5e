"""The terms as pure functions: each returns its sum in fp32 and divides nothing.

Legend: B rows, L length, D hidden, H heads, M masked positions, V vocabulary. What a sum is
divided by is known from the batch alone (objective.counts), so it is divided once, by the count
over the whole global batch: neither accumulation nor padding nor world size changes a loss.
TinyBERT is Jiao et al. 2020 (https://arxiv.org/abs/1909.10351).
"""

from __future__ import annotations

from typing import Any

import torch

from fitb.data.masking import IGNORE_INDEX

_BLOCK = 2**20  # numbers at a time on a CPU: 4 MB, which caches hold


def hidden_loss(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Squared error of (projected) hidden states or embeddings (TinyBERT, eq. 8 and 9).

    Args:
        student: (B, L, D) float, after the projection to the teacher's width.
        teacher: (B, L, D) float.
        mask: (B, L), 1 on tokens that count; None where all do.
    Returns: scalar fp32; its mean is over tokens x D.
    """
    difference = student.float() - teacher.float()
    if mask is not None:
        difference = difference.masked_fill(mask[..., None] == 0, 0.0)
    return difference.square().sum()


def slot_losses(
    student: torch.Tensor, teacher: torch.Tensor | None, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Soft and hard cross-entropy at the slots, in one pass over the logits, and hits.

    The soft one is that of the student under the teacher (TinyBERT, eq. 10), both at a temperature
    and multiplied by its square, which keeps the size of its gradient (Hinton et al. 2015, section
    2.1); the hard one is that of the true tokens (Devlin et al. 2019, section 3.1).

    Args:
        student: (M, V) float logits.
        teacher: (M, V) float logits; None leaves the soft loss 0.
        labels: (M,) int64; positions with IGNORE_INDEX do not count.
        temperature: of the soft loss.
    Returns: soft, hard, and the number of slots whose likeliest token is the true one: scalars,
        fp32; no counted position gives zeros that have a graph. Their means are over counted
        positions.
    """
    sums: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    sums = _SlotLosses.apply(student, teacher, labels, temperature)  # type: ignore[no-untyped-call]
    return sums


class _SlotLosses(torch.autograd.Function):
    """Keeps the logits and three numbers a slot; probabilities live for one block of rows."""

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
    """Rows that are worked on together: all on a GPU, what fits into a cache on a CPU."""
    num_rows, width = logits.shape
    step = max(1, _BLOCK // width) if logits.device.type == "cpu" else max(1, num_rows)
    return [slice(begin, begin + step) for begin in range(0, num_rows, step)]
