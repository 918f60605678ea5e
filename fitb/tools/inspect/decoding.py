"""Decoding of ids to text: masked examples, and round trips from ids to text and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders, models

from fitb.config import MaskConfig
from fitb.data.masking import IGNORE_INDEX, Masked, Vocabulary, mask_rows
from fitb.shards.tokenizer import open_tokenizer
from fitb.tools.inspect.sample import Sample

_SHOWN_FAILURES = 5
_AROUND = 3  # subwords on both sides of the first difference


class TokenDecoder:
    """Decodes ids to text without transformers or torch.

    Unlike a WordPiece tokenizer's own decoder it does not clean up spaces ("do not" would become
    "don't"), so that the text can be encoded again.

    Args:
        folder: folder of the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer, self.special = open_tokenizer(folder)
        if isinstance(self.tokenizer.model, models.WordPiece):
            prefix = self.tokenizer.model.continuing_subword_prefix
            self.tokenizer.decoder = decoders.WordPiece(prefix=prefix, cleanup=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the subword of each id, or <id> outside the vocabulary."""
        return [self.tokenizer.id_to_token(int(i)) or f"<{int(i)}>" for i in ids]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
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
    """Mask some rows as in epoch 0 of a run with this seed; JSON-able."""
    size = len(sample.rows)
    number = min(number, size)
    chosen = np.arange(number) * size // max(1, number)
    masked = masked_rows(sample, chosen, vocabulary, mask, seed)
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


def masked_rows(
    sample: Sample, chosen: NDArray[np.int64], vocabulary: Vocabulary, mask: MaskConfig, seed: int
) -> Masked:
    """Mask the chosen rows of a sample as in epoch 0 of a run with this seed."""
    rows = sample.rows[chosen]
    return mask_rows(
        *(sample.input_ids[chosen], sample.word_starts[chosen], rows, np.zeros_like(rows)),
        seed=seed,
        vocabulary=vocabulary,
        config=mask,
    )


def round_trips(sample: Sample, decoder: TokenDecoder) -> dict[str, Any]:
    """Decode each segment of a document in a row, encode the text again, and compare the ids.

    Unknown words, whose text is lost, and the tail of a word cut at the row's begin are left out.

    Returns: JSON-able: numbers of segments and failures, and for the first failures the row and
        the subwords around the first difference, before and after.
    """
    segments = list(_segments(sample, decoder.special.unk))
    again = decoder.encode([decoder.text(ids) for _, ids in segments])
    pairs = zip(segments, again, strict=True)
    failures = [(row, before, after) for (row, before), after in pairs if before != after]
    return {
        "segments": len(segments),
        "failures": len(failures),
        "first": [
            {"row": row, **_difference(before, after, decoder)}
            for row, before, after in failures[:_SHOWN_FAILURES]
        ],
    }


def _segments(sample: Sample, unk: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (row number, known ids) of each document in each row, from its first word start on."""
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
