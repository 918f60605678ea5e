"""Operations and parameters of a BERT by its sizes: what MFU and `fitb plan` count.

A multiplication and an addition are two; LayerNorm, softmax, GELU and losses count nothing, nor do
the maps from student to teacher states (7 of 220 MFLOP more for TinyBERT-4): what an implementation
does besides is overhead. Both heads run at the slots alone.

Legend: L length, D hidden, F intermediate, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from fitb.config import Geometry

_STATE_BYTES = 12  # of a parameter in a checkpoint: weight and two moments, fp32
BACKWARD = 2  # a backward pass has twice the matmuls of its forward pass


@dataclass(frozen=True)
class TokenFlops:
    """Of one token, on average, in operations.

    Args:
        teacher: its encoder, forward.
        student: its encoder, forward and backward.
        heads: both MLM heads at the slots, the student's forward and backward.
    """

    teacher: float
    student: float
    heads: float

    @property
    def total(self) -> float:
        return self.teacher + self.student + self.heads


def encoder_flops(geometry: Geometry, length: int) -> float:
    """Of one token through the encoder, forward: 2 N (4 D^2 + 2 D F) + 4 N D L."""
    width, layers = geometry.hidden_size, geometry.num_hidden_layers
    linear = 2 * layers * (4 * width**2 + 2 * width * geometry.intermediate_size)
    return linear + 4 * layers * width * length


def head_flops(geometry: Geometry, vocabulary: int) -> float:
    """Of one slot through the MLM head, forward: 2 D^2 + 2 D V."""
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
    """Count a training step, divided by its tokens.

    Args:
        teacher: None trains plain MLM.
        slots_per_token: masked positions over tokens.
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
    """Count what is trained: the student, its head, and a map to the teacher for each state.

    The embedding that is also the decoder counts once.
    """
    width, inner = student.hidden_size, student.intermediate_size
    positions = max(512, length)
    embeddings = (vocabulary + positions + 2) * width + 2 * width
    layer = 4 * (width + 1) * width + 2 * width * inner + inner + width + 4 * width
    head = (width + 1) * width + 2 * width + vocabulary
    maps = (student.num_hidden_layers + 1) * width * teacher.hidden_size if teacher else 0
    return embeddings + student.num_hidden_layers * layer + head + maps


def checkpoint_bytes(parameters: int) -> int:
    """Return the size of one checkpoint of so many trained parameters."""
    return parameters * _STATE_BYTES
