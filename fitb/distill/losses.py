"""The five terms as pure functions: each returns its sum in fp32 and divides nothing.

Legend: B rows, L length, D hidden, H heads, M masked positions, V vocabulary. What a sum is
divided by is known from the batch alone (objective.counts), so it is divided once, by the count
over the whole global batch: neither accumulation nor padding nor world size changes a loss.
TinyBERT is Jiao et al. 2020 (https://arxiv.org/abs/1909.10351).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fitb.data.masking import IGNORE_INDEX


def hidden_loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared error of (projected) hidden states or embeddings (TinyBERT, eq. 8 and 9).

    Args:
        student: (B, L, D) float, after the projection to the teacher's width.
        teacher: (B, L, D) float.
        mask: (B, L), 1 on tokens that count.
    Returns: scalar fp32; its mean is over tokens x D.
    """
    difference = student.float() - teacher.float()
    return difference.masked_fill(mask[..., None] == 0, 0.0).square().sum()


def logits_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Soft cross-entropy of the student under the teacher (TinyBERT, eq. 10).

    Multiplied by the temperature squared, which keeps the size of its gradient (Hinton et al.
    2015, section 2.1).

    Args:
        student: (M, V) float logits.
        teacher: (M, V) float logits.
        labels: (M,) int64; positions with IGNORE_INDEX do not count.
    Returns: scalar fp32; its mean is over counted positions.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    soft_teacher = F.softmax(teacher.float() / temperature, dim=-1)
    per_slot = -(soft_teacher * log_student).sum(-1) * temperature**2
    return per_slot.masked_fill(labels == IGNORE_INDEX, 0.0).sum()


def mlm_loss(student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the true tokens (Devlin et al. 2019, section 3.1).

    Args:
        student: (M, V) float logits.
        labels: (M,) int64; positions with IGNORE_INDEX do not count.
    Returns: scalar fp32; no counted position gives a zero that has a graph.
    """
    return F.cross_entropy(student.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")
