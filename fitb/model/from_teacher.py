"""A student that begins from its teacher: copied layers, or embeddings reduced to a subspace.

A student as wide as its teacher takes the teacher's embeddings, some of its layers and its MLM head
(as in DistilBERT: Sanh et al. 2019, section 3, https://arxiv.org/abs/1910.01108). A narrower one
takes the coordinates of embeddings and head in the subspace of the largest principal components of
the teacher's embeddings; its layers stay random.

Legend: D width of the teacher, d width of the student, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fitb.model.load import encoder, mlm_head

if TYPE_CHECKING:
    from transformers import BertForMaskedLM


@torch.no_grad()
def take_weights(
    student: BertForMaskedLM, teacher: BertForMaskedLM, layers: Sequence[int]
) -> tuple[torch.Tensor | None, list[str]]:
    """Set a student's weights from its teacher, in place.

    Args:
        student: BERT with random weights.
        teacher: BERT of the same vocabulary.
        layers: teacher layer (1 = first) for each student layer.
    Returns: (D, d) fp32 with orthonormal columns, the student's space in the teacher's, None if the
        student is wider; and what stays random, each with its reason.
    """
    ours, theirs = student.config, teacher.config
    narrow, wide = ours.hidden_size, theirs.hidden_size
    if narrow > wide:
        return None, [f"all weights: the student is {narrow} wide, the teacher {wide}"]
    basis = torch.eye(wide) if narrow == wide else principal_basis(_sums(teacher), narrow)
    left = list(_embeddings(student, teacher, basis))
    left += _head(student, teacher, basis)
    for key in ("hidden_act", "layer_norm_eps"):
        if getattr(ours, key) != getattr(theirs, key):
            left.append(f"{key} {getattr(theirs, key)}: the student has {getattr(ours, key)}")
    if narrow < wide:
        return basis, [*left, f"layers: the student is {narrow} wide, the teacher {wide}"]
    return basis, [*left, *_layers(student, teacher, layers)]


def principal_basis(rows: torch.Tensor, num_components: int) -> torch.Tensor:
    """Return the largest principal components of rows about zero, rotated for LayerNorm.

    The projections of distillation have no bias, so components are those about zero and not about
    the mean. LayerNorm removes the mean of the coordinates; the rotation makes this mean the
    coordinate of the smallest component, so that nothing else is lost.

    Args:
        rows: (V, D) float.
        num_components: d, below D.
    Returns: (D, d) fp32, orthonormal columns.
    """
    rows = rows.double()
    _, components = torch.linalg.eigh(rows.T @ rows)  # ascending
    kept = components[:, -num_components:].flip(1)
    largest = kept.gather(0, kept.abs().argmax(0, keepdim=True))
    kept = kept * largest.sign()  # which eigh leaves open
    normal = torch.full((num_components,), -(num_components**-0.5), dtype=torch.float64)
    normal[-1] += 1  # Householder reflection of the last axis onto the mean of the coordinates
    rotated: torch.Tensor = kept - 2 * torch.outer(kept @ normal, normal) / normal.dot(normal)
    return rotated.float()


def _sums(model: BertForMaskedLM) -> torch.Tensor:
    """(V, D): sums of word, mean position and token type embeddings, before their LayerNorm."""
    parts: Any = encoder(model).embeddings
    context = parts.position_embeddings.weight.mean(0) + parts.token_type_embeddings.weight[0]
    return torch.as_tensor(parts.word_embeddings.weight + context)


def _embeddings(student: Any, teacher: Any, basis: torch.Tensor) -> Iterator[str]:
    """Take embeddings; fit their LayerNorm by least squares over the vocabulary."""
    ours: Any = encoder(student).embeddings
    theirs: Any = encoder(teacher).embeddings
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        mine, from_weight = getattr(ours, name).weight, getattr(theirs, name).weight
        both = min(len(mine), len(from_weight))
        mine[:both] = from_weight[:both] @ basis
        if both < len(mine):
            yield f"{name} {both} to {len(mine) - 1}: the teacher has {both}"
    if basis.shape[0] == basis.shape[1]:
        ours.LayerNorm.load_state_dict(theirs.LayerNorm.state_dict())
        return
    wanted = theirs.LayerNorm(_sums(teacher)) @ basis
    norm = ours.LayerNorm
    norm.weight.fill_(1.0)
    norm.bias.zero_()
    had = norm(_sums(student))
    spread = had - had.mean(0)
    norm.weight.copy_((spread * wanted).mean(0) / spread.square().mean(0).clamp(min=1e-12))
    norm.bias.copy_(wanted.mean(0) - norm.weight * had.mean(0))


def _head(student: Any, teacher: Any, basis: torch.Tensor) -> Iterator[str]:
    ours: Any = mlm_head(student).predictions
    theirs: Any = mlm_head(teacher).predictions
    ours.transform.dense.weight.copy_(basis.T @ theirs.transform.dense.weight @ basis)
    ours.transform.dense.bias.copy_(theirs.transform.dense.bias @ basis)
    ours.transform.LayerNorm.bias.copy_(theirs.transform.LayerNorm.bias @ basis)
    if basis.shape[0] == basis.shape[1]:
        ours.transform.LayerNorm.weight.copy_(theirs.transform.LayerNorm.weight)
    ours.decoder.bias.copy_(theirs.decoder.bias)
    if not teacher.config.tie_word_embeddings:
        yield "decoder weights: the teacher's are not its word embeddings"


def _layers(student: Any, teacher: Any, layers: Sequence[int]) -> Iterator[str]:
    """Copy whole layers, or their halves of equal shapes."""
    ours, theirs = student.config, teacher.config
    heads = ours.num_attention_heads == theirs.num_attention_heads
    sizes = ours.intermediate_size == theirs.intermediate_size
    if not heads:
        yield (
            f"attention of the layers: the student has {ours.num_attention_heads} heads, the"
            f" teacher {theirs.num_attention_heads}"
        )
    if not sizes:
        yield (
            f"feed-forward part of the layers: the student's is {ours.intermediate_size} wide, the"
            f" teacher's {theirs.intermediate_size}"
        )
    to: Any = encoder(student).encoder
    of: Any = encoder(teacher).encoder
    for layer, number in zip(to.layer, layers, strict=True):
        parts = ["attention"] * heads + ["intermediate", "output"] * sizes
        for part in parts:
            getattr(layer, part).load_state_dict(getattr(of.layer[number - 1], part).state_dict())
