"""Mapping from student layers to teacher layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fitb.base.errors import ConfigError

LayerMap = Literal["uniform"] | Sequence[int]


def resolve(layer_map: LayerMap, num_student: int, num_teacher: int) -> tuple[int, ...]:
    """Return the teacher layer of each student layer, numbered from 1 (TinyBERT, section 3.1).

    Args:
        layer_map: uniform, or a teacher layer for each student layer.
        num_student: number of student layers.
        num_teacher: number of teacher layers.
    Raises: ConfigError if the map has another length, or names a layer that does not exist.
    """
    if layer_map == "uniform":
        if num_student > num_teacher:
            raise ConfigError(
                f"objective.layer_map=uniform needs a teacher at least as deep as the student;"
                f" {num_teacher} < {num_student} layers; give the map as a list"
            )
        return tuple(round((i + 1) * num_teacher / num_student) for i in range(num_student))
    given = tuple(int(layer) for layer in layer_map)
    if len(given) != num_student or not all(1 <= layer <= num_teacher for layer in given):
        raise ConfigError(
            f"objective.layer_map={list(given)}; expected {num_student} layers, each from 1"
            f" to {num_teacher}; correct the list or use uniform"
        )
    return given
