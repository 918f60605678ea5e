"""Recall and precision of near-duplicates that are planted at known similarities.

    python tests/benchmarks/duplicates.py --pairs 600 --thresholds '[0.8]'

Copies of texts are edited at random and their exact Jaccard similarity is counted; then the steps
of `fitb prepare` look for them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fitb.base import rng
from fitb.bench.text import documents, pool
from fitb.bench.timing import machine
from fitb.corpus import minhash

_EDITED = 0.08  # the most words of a copy that are replaced: 0.4 of the similarity is left
_EDGES = (-0.075, -0.025, 0.0, 0.025, 0.075)  # of the table's rows, about the threshold
_MEAN_CHARS = 1500


def bench(
    pairs: int = 3000, thresholds: tuple[float, ...] = (0.6, 0.8, 0.95), seed: int = 0
) -> dict[str, Any]:
    """Plant, look, count; every third copy is edited little, every tenth not at all.

    Args:
        pairs: texts, each with one edited copy.
        thresholds: Jaccard similarities from which on a copy is a duplicate.
        seed: of the texts and their edits.
    """
    drawn = documents(pool(), 2 * pairs * _MEAN_CHARS, seed)
    texts = [text for _, text in zip(range(pairs), drawn, strict=False)]
    copies = [edited(text, number, seed) for number, text in enumerate(texts)]
    exact = np.array([jaccard(a, b) for a, b in zip(texts, copies, strict=True)])
    result: dict[str, Any] = {"bench": "duplicates", **machine(), "pairs": len(texts)}
    result["thresholds"] = [
        {"threshold": threshold, **_score(exact, *_search([texts, copies], threshold), threshold)}
        for threshold in thresholds
    ]
    return result


def shingles(text: str) -> set[tuple[str, ...]]:
    """Word 5-grams of a text of spaced words, found apart from fitb/corpus/minhash.py."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def jaccard(a: str, b: str) -> float:
    """Exact similarity of two texts."""
    one, other = shingles(a), shingles(b)
    return len(one & other) / len(one | other)


def edited(text: str, number: int, seed: int) -> str:
    """Replace words at random places, a number of them that is drawn as well."""
    words = text.split()
    share = float(rng.uniform(seed, 1, number)) * _EDITED
    if number % 10 == 0:
        return text
    if number % 3 == 0:
        share /= 4  # where the similarity moves fastest
    places = rng.keyed(seed, 2, number, np.arange(max(1, round(share * len(words)))))
    for edit, place in enumerate(places % np.uint64(len(words))):
        words[int(place)] = f"edit{number}x{edit}"
    return " ".join(words)


def _search(shards: Sequence[Sequence[str]], threshold: float) -> tuple[NDArray[np.bool_], int]:
    """Return which copies go, (n,) bool, and how many originals do."""
    with tempfile.TemporaryDirectory(prefix="fitb-bench-") as name:
        folder = Path(name)
        for shard, texts in enumerate(shards):
            minhash.write_signatures(folder, shard, minhash.signatures(texts), threshold)
        for bucket in range(minhash.bands(threshold)[0]):
            minhash.find_pairs(folder, bucket, threshold)
        minhash.cluster(folder, threshold)
        found = np.zeros(len(shards[1]), dtype=bool)
        found[minhash.removed(folder, 1)] = True
        return found, len(minhash.removed(folder, 0))


def _score(
    exact: NDArray[np.float64], found: NDArray[np.bool_], others: int, threshold: float
) -> dict[str, Any]:
    """Recall, precision, and the share found by exact similarity.

    Args:
        exact: (n,) similarity of each copy to its original.
        found: (n,) whether the copy went.
        others: originals that went: false, unless two were drawn alike.
    """
    alike = exact >= threshold
    edges = [0.0, *(min(1.0, round(threshold + edge, 3)) for edge in _EDGES), 1.0]
    rows = []
    for low, high in zip(edges, edges[1:], strict=False):
        rows.append((f"{low:.3g} to {high:.3g}", (exact >= low) & (exact < high)))
    rows.append(("1", exact == 1))
    return {
        "recall": round(float(found[alike].mean()), 4),
        "precision": round(float((found & alike).sum() / max(1, found.sum() + others)), 4),
        "by_similarity": [
            {
                "similarity": label,
                "pairs": int(inside.sum()),
                "found": round(float(found[inside].mean()), 4),
            }
            for label, inside in rows
            if inside.any()
        ],
    }


if __name__ == "__main__":
    from command import print_json

    print_json(bench)
