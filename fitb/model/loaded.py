"""A loaded model with the properties of its source, and checks of it; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """A model and the properties of its source.

    Args:
        model: the model, in eval mode, float32, on the CPU.
        source: folder, hub name, or representation of a geometry.
        missing: names of weights that the checkpoint lacks and that are random now, sorted; empty
            for a geometry.
        tokenizer_fingerprint: fingerprint of the tokenizer in the same folder, or named by a
            checkpoint; None if there is none.
        unexpected: names of weights of the checkpoint that the model lacks, sorted, without heads
            of other tasks.
        tokenizer_source: folder or hub name of the tokenizer that the weights were trained with;
            None if it is unknown.
        shards_fingerprint: fingerprint of the shard set that a checkpoint was trained on; None for
            other sources.
        added: ids by token of tokens that its tokenizer lacks but it has embedding rows for.
        is_random: whether the weights are untrained, so that any vocabulary fits.
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


def some(names: Sequence[str], most: int = 4) -> str:
    """Join the first names, and count the rest."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def check_finite(model: nn.Module, source: str) -> None:
    """Raise DataError with the names of weights that hold infinities or NaN."""
    found = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if found:
        raise DataError(
            f"model {source!r}: {some(found)} not finite (NaN or infinity): its"
            " training diverged, or 16 bits overflowed; use an earlier or another checkpoint"
        )


def tokenizer_fingerprint_of(source: str) -> str | None:
    """Return the fingerprint of the tokenizer.json of a folder or hub name, None without one."""
    try:
        found = find_file(source, "tokenizer.json")
        return tokenizer_fingerprint(found.parent) if found else None
    except PermissionError as error:
        raise not_found("tokenizer", source, "tokenizer.json", error) from error
