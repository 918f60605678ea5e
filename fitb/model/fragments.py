"""Tensors cut into fragments of their flattened form, each under the key `NAME@BEGIN`.

Under ZeRO every rank holds other parts of the state. Checkpoints of format 2 have these parts as
they are; a key without `@` is a whole tensor, as in format 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fitb.base.errors import CheckpointError

if TYPE_CHECKING:
    import torch


def key_of(name: str, begin: int) -> str:
    """Return the key of a fragment that begins at this element of the flattened tensor."""
    return f"{name}@{begin}"


def name_of(key: str) -> str:
    """Return the name of the tensor that a key belongs to."""
    return key.partition("@")[0]


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
    found: Counter[str] = Counter()
    for key, part in parts:
        name, fragment, begin = key.partition("@")
        if not fragment:
            whole[name] = part
            continue
        if name not in whole:
            whole[name] = part.new_empty(list(shapes[name]))
        whole[name].view(-1)[int(begin) : int(begin) + part.numel()] = part
        found[name] += part.numel()
    for name, number in found.items():
        if number != whole[name].numel():
            raise CheckpointError(
                f"{name} has {whole[name].numel()} elements, and fragments of it hold {number}"
            )
    return whole
