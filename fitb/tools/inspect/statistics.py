"""Statistics of sampled rows: lengths, subwords per word, unknown tokens.

Legend: B rows, L length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitb.config import MaskConfig
from fitb.data.masking import Vocabulary, budgets, word_numbers
from fitb.tools.inspect.decoding import TokenDecoder
from fitb.tools.inspect.sample import Sample, document_lengths

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_NUM_BINS = 16
_MOST_SPLIT = 10
_CANDIDATES = 200  # most split words to count


def statistics(
    sample: Sample,
    *,
    shard_rows: Sequence[int],
    vocabulary: Vocabulary,
    decoder: TokenDecoder,
    overlapping: bool,
    mask: MaskConfig,
) -> dict[str, Any]:
    """Return statistics of a sample.

    Args:
        overlapping: whether rows overlap, so that the lengths of documents are unknown.
        mask: masking settings.
    Returns: JSON-able; `unknown_share` is of tokens of text, `split_share` of known words;
        `never_masked` are words with more tokens than their row may have masked.
    """
    text = sample.segments >= 0
    words = word_numbers(sample.input_ids, sample.word_starts, vocabulary)
    sizes = word_sizes(words)
    num_words = int((sizes > 0).sum())
    above = (sizes > budgets(words, mask)[:, None]) & (mask.strategy == "whole_word")
    lengths = None if overlapping else document_lengths(sample, shard_rows)
    return {
        "sample_rows": len(sample.rows),
        "sample_tokens": int(text.sum()),
        "document_tokens": None if lengths is None else describe(lengths, doubling=True),
        "words_per_row": describe(sample.word_starts.sum(axis=1)),
        "unknown_share": _share(
            int((sample.input_ids == decoder.special.unk).sum()), int(text.sum())
        ),
        "split_share": _share(int((sizes > 1).sum()), num_words),
        "pieces_per_word": _share(int(sizes.sum()), num_words),
        "most_split": _named(most_split(sample.input_ids, words, sizes), decoder),
        "never_masked": {
            "count": int(above.sum()),
            "words": _named(most_split(sample.input_ids, words, sizes * above), decoder),
        },
    }


def _named(words: list[tuple[tuple[int, ...], int]], decoder: TokenDecoder) -> list[dict[str, Any]]:
    return [
        {"word": decoder.text(list(ids)), "pieces": decoder.pieces(ids), "count": count}
        for ids, count in words
    ]


def _share(part: int, whole: int) -> float:
    return round(part / max(1, whole), 6)


def word_sizes(words: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (B, L) int64, the tokens of each row's i-th word; 0 if it has fewer words.

    Args:
        words: (B, L) int64, word_numbers of the rows.
    """
    num_rows, length = words.shape
    flat = (np.arange(num_rows)[:, None] * length + words)[words >= 0]
    return np.bincount(flat, minlength=words.size).reshape(words.shape)


def most_split(
    input_ids: NDArray[np.int64], words: NDArray[np.int64], sizes: NDArray[np.int64]
) -> list[tuple[tuple[int, ...], int]]:
    """Return (ids, occurrences) of the words with most subwords, at least two, most first."""
    split = np.sort(sizes[sizes > 1])[::-1]
    if not len(split):
        return []
    fewest = split[min(_CANDIDATES, len(split)) - 1]
    counts: Counter[tuple[int, ...]] = Counter()
    for row, number in zip(*np.nonzero(sizes >= fewest), strict=True):
        counts[tuple(input_ids[row, words[row] == number].tolist())] += 1
    ranked = sorted(counts.items(), key=lambda item: (-len(item[0]), -item[1], item[0]))
    return ranked[:_MOST_SPLIT]


def describe(values: NDArray[np.int64], *, doubling: bool = False) -> dict[str, Any] | None:
    """Return mean, std, percentiles and a histogram of half-open bins; None without values.

    Args:
        values: (n,) int64, not negative.
        doubling: whether bins double in width, for values of all magnitudes.
    """
    if not len(values):
        return None
    low, high = int(values.min()), int(values.max())
    if doubling:
        edges = np.array([0, *(2**i for i in range(high.bit_length() + 1))])
        edges = edges[np.searchsorted(edges, low, side="right") - 1 :]
    else:
        width = -(-(high + 1 - low) // _NUM_BINS)
        edges = np.arange(low, high + 1 + width, width)
    counts, _ = np.histogram(values, edges)
    return {
        "count": len(values),
        "mean": round(float(values.mean()), 2),
        "std": round(float(values.std()), 2),
        "min": low,
        "max": high,
        "percentiles": {str(p): round(float(np.percentile(values, p)), 1) for p in PERCENTILES},
        "histogram": [
            {"begin": int(begin), "end": int(end), "count": int(count)}
            for begin, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
        ],
    }
