"""A loaded model with what its source said about itself, and what is asked of any; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fitb.base.errors import DataError
from fitb.base.hub import find_file, not_found
from fitb.shards.tokenizer import tokenizer_fingerprint

if TYPE_CHECKING:
    from torch import nn
    from transformers import BertForMaskedLM


@dataclass(frozen=True)
class Loaded:
    """A model and what its source said about itself.

    Args:
        model: in eval mode, float32, on the CPU.
        source: folder, hub name, or a rendering of the geometry.
        missing: weights that the checkpoint did not hold and that are random now, sorted; empty
            for a geometry, whose weights are random on purpose.
        tokenizer_fingerprint: of the tokenizer in the same folder, or that a checkpoint names; None
            where there is none.
        unexpected: weights of the checkpoint for which the model has no place, sorted; heads of
            other tasks left out.
        tokenizer_source: folder or hub name whose tokenizer the weights were trained with; None
            where only its fingerprint is known, or nothing.
        shards_fingerprint: of the set that a checkpoint was trained on; None for others.
        added: ids of tokens that it was given rows for, which its tokenizer lacks.
        is_random: whether nothing was learnt yet, so that any vocabulary is its own.
    """

    model: BertForMaskedLM
    source: str
    missing: tuple[str, ...] = ()
    tokenizer_fingerprint: str | None = None
    unexpected: tuple[str, ...] = ()
    tokenizer_source: str | None = None
    shards_fingerprint: str | None = None
    added: Mapping[str, int] = field(default_factory=dict)
    is_random: bool = False


def check_finite(model: nn.Module, source: str) -> None:
    """Raise DataError with the names of weights that hold an infinity or NaN."""
    found = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if found:
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise DataError(
            f"model {source!r}: {', '.join(found[:4])}{more} not finite (NaN or infinity), so every"
            " answer would be; training it diverged, or 16 bits overflowed: use an earlier or"
            " another checkpoint"
        )


def tokenizer_fingerprint_of(source: str) -> str | None:
    """Return the fingerprint of the tokenizer in a folder or hub name; None where there is none."""
    try:
        found = find_file(source, "tokenizer.json")
        return tokenizer_fingerprint(found.parent) if found else None
    except PermissionError as error:
        raise not_found("tokenizer", source, "tokenizer.json", error) from error
