"""Tensors cut into fragments of their flattened form, each under the key `NAME@BEGIN`.

Under ZeRO every rank holds other parts of the state. Checkpoints of format 2 have these parts as
they are; a key without `@` is a whole tensor, as in format 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fitb.base.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def key_of(name: str, begin: int) -> str:
    """Return the key of a fragment that begins at this element of the flattened tensor."""
    return f"{name}@{begin}"


def check_coverage(parts: Iterable[tuple[str, int]], shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that fragments cover tensors, every element once.

    Args:
        parts: key and number of elements of each fragment, in any order.
        shapes: shape of each tensor.
    Raises: CheckpointError naming the first tensor with a hole, an overlap, or no fragment.
    """
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for key, number in parts:
        name, fragment, begin = key.partition("@")
        if fragment:
            found[name].append((int(begin), number))
    for name, shape in shapes.items():
        end, cuts = 0, sorted(found[name])
        for first, number in cuts:
            end = end + number if first == end else -1
        if end != math.prod(shape):
            raise CheckpointError(
                f"{name} has {math.prod(shape)} elements, and its fragments (begin, elements) are"
                f" {cuts[:9]}; expected each element once"
            )


def joined(
    parts: Iterable[tuple[str, torch.Tensor]], shapes: Mapping[str, Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Put whole tensors together.

    Args:
        parts: key and (n,) tensor of each fragment, in any order; whole tensors stay as they are.
        shapes: shape of each tensor of which there are fragments.
    Returns: name -> tensor.
    Raises: CheckpointError if a tensor is not covered by its fragments.
    """
    whole: dict[str, torch.Tensor] = {}
    sizes: list[tuple[str, int]] = []
    for key, part in parts:
        name, fragment, begin = key.partition("@")
        if not fragment:
            whole[name] = part
            continue
        if name not in whole:
            whole[name] = part.new_empty(list(shapes[name]))
        whole[name].view(-1)[int(begin) : int(begin) + part.numel()] = part
        sizes.append((key, part.numel()))
    check_coverage(sizes, shapes)
    return whole
