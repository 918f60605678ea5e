"""Decode ids to text: masked examples, and the round trip from ids to text and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import decoders, models

from fitb.config import MaskConfig
from fitb.data.masking import IGNORE_INDEX, Vocabulary, mask_rows
from fitb.shards.tokenizer import open_tokenizer
from fitb.tools.inspect.sample import Sample

_SHOWN_FAILURES = 5
_AROUND = 3  # pieces on both sides of the first that differs


class TokenDecoder:
    """Decodes ids to text without transformers or torch.

    The decoder of a WordPiece tokenizer also mends spaces ("do not" becomes "don't"); here it only
    joins pieces, because text is to be read again.

    Args:
        folder: of the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer, self.special = open_tokenizer(folder)
        if isinstance(self.tokenizer.model, models.WordPiece):
            prefix = self.tokenizer.model.continuing_subword_prefix
            self.tokenizer.decoder = decoders.WordPiece(prefix=prefix, cleanup=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return each token's piece; that of an id outside the vocabulary is its number."""
        return [self.tokenizer.id_to_token(int(i)) or f"<{int(i)}>" for i in ids]

    def text(self, ids: Sequence[int]) -> str:
        """Return pieces joined to words, special tokens as they are written."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def examples(
    sample: Sample,
    number: int,
    *,
    decoder: TokenDecoder,
    vocabulary: Vocabulary,
    mask: MaskConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """Mask some rows as epoch 0 of a run of this seed does; JSON-able."""
    size = len(sample.rows)
    chosen = np.arange(min(number, size)) * size // max(1, min(number, size))
    masked = mask_rows(
        sample.input_ids[chosen],
        sample.word_starts[chosen],
        sample.rows[chosen],
        np.zeros_like(chosen),
        seed=seed,
        vocabulary=vocabulary,
        config=mask,
    )
    return [
        {
            "row": int(sample.rows[chosen[i]]),
            "ids": (ids := masked.input_ids[i][masked.attention_mask[i] == 1].tolist()),
            "pieces": decoder.pieces(ids),
            "masked": decoder.text(ids),
            "labels": [
                {
                    "place": int(place),
                    "shown": decoder.pieces([masked.input_ids[i, place]])[0],
                    "label": decoder.pieces([label])[0],
                }
                for place, label in zip(masked.slots[i], masked.labels[i], strict=True)
                if label != IGNORE_INDEX
            ],
        }
        for i in range(len(chosen))
    ]


def round_trips(sample: Sample, decoder: TokenDecoder) -> dict[str, Any]:
    """Decode what each row holds of each document, read it again, compare ids.

    Unknown words are left out, as their text is lost, and so is the tail of a word that the row
    before cut.

    Returns: JSON-able: segments compared, failures, and of the first few failures the row and the
        pieces around the first that differs, before and after.
    """
    segments = list(_segments(sample, decoder.special.unk))
    again = decoder.encode([decoder.text(ids) for _, ids in segments])
    failures = [
        (row, before, after)
        for (row, before), after in zip(segments, again, strict=True)
        if before != after
    ]
    return {
        "segments": len(segments),
        "failures": len(failures),
        "first": [
            {"row": row, **_difference(before, after, decoder)}
            for row, before, after in failures[:_SHOWN_FAILURES]
        ],
    }


def _segments(sample: Sample, unk: int) -> Iterator[tuple[int, list[int]]]:
    """(row number, known ids) of each document in each row, from its first word start on."""
    started = np.logical_or.accumulate(sample.word_starts, axis=1)
    wanted = started & (sample.segments >= 0) & (sample.input_ids != unk)
    for i in range(len(sample.rows)):
        ids, numbers = sample.input_ids[i, wanted[i]], sample.segments[i, wanted[i]]
        for part in np.split(ids, np.flatnonzero(np.diff(numbers)) + 1):
            if len(part):
                yield int(sample.rows[i]), part.tolist()


def _difference(before: list[int], after: list[int], decoder: TokenDecoder) -> dict[str, Any]:
    pairs = zip(before, after, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
    around = slice(max(0, place - _AROUND), place + _AROUND + 1)
    return {
        "place": place,
        "before": decoder.pieces(before[around]),
        "after": decoder.pieces(after[around]),
    }
