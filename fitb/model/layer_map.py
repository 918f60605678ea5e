"""Which layer of the teacher each layer of the student learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fitb.base.errors import ConfigError

LayerMap = Literal["uniform"] | Sequence[int]


def resolve(layer_map: LayerMap, num_student: int, num_teacher: int) -> tuple[int, ...]:
    """Return the teacher's layer for each student layer, 1 is the first (TinyBERT, section 3.1).

    Raises: ConfigError where the map has another length, or names a layer that is not there.
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
