"""Mapping from student layers to teacher layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fitb.base.errors import ConfigError

LayerMap = Literal["uniform", "lower"] | Sequence[int]


def resolve(
    layer_map: LayerMap, num_student: int, num_teacher: int, key: str = "objective.layer_map"
) -> tuple[int, ...]:
    """Return the teacher layer of each student layer, numbered from 1.

    Args:
        layer_map: uniform (TinyBERT, section 3.1), lower for the first layers, or a teacher layer
            for each student layer.
        num_student: number of student layers.
        num_teacher: number of teacher layers.
        key: configuration key of the map, for errors.
    Raises: ConfigError if the map has another length, or names a layer that does not exist.
    """
    if isinstance(layer_map, str):
        if num_student > num_teacher:
            raise ConfigError(
                f"{key}={layer_map} needs a teacher at least as deep as the student;"
                f" {num_teacher} < {num_student} layers; give the map as a list"
            )
        step = num_teacher / num_student if layer_map == "uniform" else 1
        return tuple(round((i + 1) * step) for i in range(num_student))
    given = tuple(int(layer) for layer in layer_map)
    if len(given) != num_student or not all(1 <= layer <= num_teacher for layer in given):
        raise ConfigError(
            f"{key}={list(given)}; expected {num_student} layers, each from 1"
            f" to {num_teacher}; correct the list or use uniform"
        )
    return given
