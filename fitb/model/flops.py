"""Model FLOPs and parameters of a BERT by its geometry, for MFU and `fitb plan`.

A multiply-add counts as two operations. LayerNorm, softmax, GELU, losses and the maps from student
to teacher states (7 of 220 MFLOP for TinyBERT-4) are not counted. MLM heads run at masked positions
only.

Legend: L length, D hidden, F intermediate, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from fitb.config import Geometry

BERT_BASE = Geometry(12, 768, 3072, 12)
VOCABULARY = 30_522  # of BERT-base
MIN_POSITIONS = 512  # as in BERT, so that a student of a published geometry has its size
_STATE_BYTES = 12  # bytes of a parameter in a checkpoint: weight and two moments, fp32
BACKWARD = 2  # a backward pass has twice the matmuls of its forward pass


@dataclass(frozen=True)
class TokenFlops:
    """Mean number of operations per token in a training step.

    Args:
        teacher: operations of the teacher's encoder, forward.
        student: operations of the student's encoder, forward and backward.
        heads: operations of both MLM heads, the student's forward and backward.
    """

    teacher: float
    student: float
    heads: float

    @property
    def total(self) -> float:
        return self.teacher + self.student + self.heads


def encoder_flops(geometry: Geometry, length: int) -> float:
    """Operations per token of an encoder's forward pass: 2 N (4 D^2 + 2 D F) + 4 N D L."""
    width, layers = geometry.hidden_size, geometry.num_hidden_layers
    linear = 2 * layers * (4 * width**2 + 2 * width * geometry.intermediate_size)
    return linear + 4 * layers * width * length


def head_flops(geometry: Geometry, vocabulary: int) -> float:
    """Operations per masked position of an MLM head's forward pass: 2 D^2 + 2 D V."""
    return 2 * geometry.hidden_size**2 + 2 * geometry.hidden_size * vocabulary


def work_per_token(
    student: Geometry,
    teacher: Geometry | None,
    *,
    length: int,
    vocabulary: int,
    slots_per_token: float,
    teacher_head: bool = True,
) -> TokenFlops:
    """Return the operations of a training step per token.

    Args:
        student: geometry of the student.
        teacher: geometry of the teacher; None for plain MLM.
        length: L, tokens in a row.
        vocabulary: V, vocabulary size.
        slots_per_token: masked positions per token.
        teacher_head: whether a term needs the teacher's logits.
    """
    trained = 1 + BACKWARD
    heads = trained * head_flops(student, vocabulary)
    if teacher is not None and teacher_head:
        heads += head_flops(teacher, vocabulary)
    return TokenFlops(
        teacher=encoder_flops(teacher, length) if teacher is not None else 0.0,
        student=trained * encoder_flops(student, length),
        heads=heads * slots_per_token,
    )


def trained_parameters(
    student: Geometry, teacher: Geometry | None, *, vocabulary: int, length: int
) -> int:
    """Count the trained parameters: student, MLM head, and a map to the teacher for each state.

    The embedding, which is tied to the decoder, counts once.
    """
    width, inner = student.hidden_size, student.intermediate_size
    embeddings = (vocabulary + max(MIN_POSITIONS, length) + 2) * width + 2 * width
    layer = 4 * (width + 1) * width + 2 * width * inner + inner + width + 4 * width
    head = (width + 1) * width + 2 * width + vocabulary
    maps = (student.num_hidden_layers + 1) * width * teacher.hidden_size if teacher else 0
    return embeddings + student.num_hidden_layers * layer + head + maps


def checkpoint_bytes(parameters: int) -> int:
    """Return the bytes of a checkpoint with this number of trained parameters."""
    return parameters * _STATE_BYTES
