"""Near-duplicate removal: MinHash signatures, LSH buckets, candidate pairs, and clusters.

The similarity of two documents is the Jaccard similarity |A & B| / |A | B| of their sets of word
5-grams (Broder 1997). The share of equal minima in two signatures of 256 minima estimates it within
0.02. Documents that agree in all minima of a bucket are candidate pairs, found by sorting; a pair
counts as a duplicate if the estimate over the whole signatures reaches the threshold. The first
document of each cluster is kept, in the order of (shard, ordinal), for any number of workers.

Dimensions: n documents, H minima (256), P pairs.

    folder/buckets/bucket_000/00000.minhash.sig   per bucket and shard: minima, ordinal; sorted
    folder/whole/00000.npy                        per shard: (n, H) uint32
    folder/pairs/00000.pairs                      per bucket: shard, ordinal, shard, ordinal
    folder/removed/00000.npy                      per shard: ordinals, sorted, int64
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import regex
from numpy.typing import NDArray

from fitb.base.errors import DataError
from fitb.base.fsio import folder_written_whole, write_atomic, written_whole

NUM_HASHES = 256

_NO_WORD = np.uint32(0xFFFFFFFF)  # all minima of a text without words
_SHINGLE_WORDS = 5
_SEED = 1  # of the hash functions; signatures of different seeds cannot be compared
_BLOCK_WORDS = 8192  # hashed at a time, which bounds the shingles in memory
_MAX_BUCKETS = 20  # each costs a task and a sorted file
_RECALL = 0.99
_BLOCK_PAIRS = 1 << 15  # 64 MB of signatures at a time
_BLOCK_BYTES = 1 << 26  # of a bucket's records, sorted at a time
_SAMPLED = 256  # one record in 256 is sampled to find the ends of the blocks
_OPEN_FILES = 128
WORDS = 2  # version of the word splitting; 1 took the vowel signs of many scripts for spaces
_WORD = regex.compile(r"\w+")
# Scripts without spaces between words: kana, Han and its extensions.
_UNSPACED = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def bands(jaccard: float) -> tuple[int, int]:
    """Return (number of buckets, hashes per bucket) for a Jaccard threshold from 0.5 to 1.

    A pair of similarity s shares a bucket of r hashes with probability s^r. This is the largest r
    with which at most 20 buckets and 256 hashes miss at most 1 % of the pairs at the threshold:
    longer buckets hold fewer pairs below it.
    """
    best = (1, NUM_HASHES)
    if jaccard == 1:
        return best
    for hashes in range(1, NUM_HASHES):
        buckets = math.ceil(math.log(1 - _RECALL) / math.log1p(-(jaccard**hashes)))
        if buckets <= _MAX_BUCKETS and buckets * hashes <= NUM_HASHES:
            best = (buckets, hashes)
    return best


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Return the MinHash signatures of texts: (n, H) uint32, the same on every machine.

    A word is a sequence of letters, digits and underscores, lowercased, or one Han or kana
    character. A text of fewer than five words is one shingle. A text without words gets an empty
    signature, which `write_signatures` leaves out. Memory: 1 kB per text, a few MB, and three
    copies of the longest text.
    """
    from rensa import RMinHash

    out = np.full((len(texts), NUM_HASHES), _NO_WORD, dtype=np.uint32)
    for row, text in enumerate(texts):
        minima = RMinHash(NUM_HASHES, _SEED)
        for block in _shingles(text):
            minima.update(block)
        out[row] = minima.digest()
    return out


def _shingles(text: str) -> Iterator[list[str]]:
    """Yield the word 5-grams of a text in blocks."""
    lower = text.lower()
    if _UNSPACED.search(lower):
        lower = _UNSPACED.sub(r" \g<0> ", lower)
    words = (match.group() for match in _WORD.finditer(lower))
    last = list(islice(words, _SHINGLE_WORDS - 1))
    block = list(islice(words, _BLOCK_WORDS))
    if last and not block:
        yield [" ".join(last)]
    while block:
        joined = last + block
        shifted = (joined[i:] for i in range(_SHINGLE_WORDS))
        yield [" ".join(gram) for gram in zip(*shifted, strict=False)]
        last = joined[1 - _SHINGLE_WORDS :]
        block = list(islice(words, _BLOCK_WORDS))


def write_signatures(folder: Path, shard: int, sigs: NDArray[np.uint32], jaccard: float) -> None:
    """Write the signatures of one shard for `find_pairs` and `cluster`, each file atomically.

    Args:
        folder: folder of this deduplication, the same for all shards and steps.
        shard: number of the shard, below 2**32.
        sigs: (n, H) uint32, from `signatures`, in the order of the documents. Those of texts
            without words are never duplicates.
        jaccard: threshold, the same for all shards and steps.
    """
    ordinals = np.flatnonzero((sigs != _NO_WORD).any(axis=1))
    num_buckets, num_hashes = bands(jaccard)
    for bucket in range(num_buckets):
        part = sigs[ordinals, bucket * num_hashes : (bucket + 1) * num_hashes]
        records = np.empty((len(part), num_hashes + 1), dtype="<u4")
        order = np.lexsort(part.T[::-1])  # stable: keeps the order of equal minima
        records[:, :-1], records[:, -1] = part[order], ordinals[order]
        path = folder / "buckets" / f"bucket_{bucket:03d}" / f"{shard:05d}.minhash.sig"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, records.tobytes())
    (folder / "whole").mkdir(exist_ok=True)
    with written_whole(folder / "whole" / f"{shard:05d}.npy") as path, path.open("wb") as file:
        np.save(file, sigs)


def pairs_of(folder: Path, bucket: int) -> Path:
    """Return the path of the candidate pairs of a bucket."""
    return folder / "pairs" / f"{bucket:05d}.pairs"


def find_pairs(folder: Path, bucket: int, jaccard: float) -> None:
    """Write the candidate pairs of a bucket, once the signatures of all shards exist.

    Documents with equal minima form a chain in the order of (shard, ordinal): (A, B), (B, C).
    Memory: one block of records, more only if that many documents share a minimum.
    """
    num_hashes = bands(jaccard)[1]
    shards: list[int] = []
    records: list[NDArray[np.uint32]] = []
    for path in sorted((folder / "buckets" / f"bucket_{bucket:03d}").glob("*.minhash.sig")):
        if path.stat().st_size:  # empty if no document of the shard has a word
            shards.append(int(path.name.partition(".")[0]))
            records.append(np.memmap(path, "<u4", "r").reshape(-1, num_hashes + 1))
    chains = b""
    if records:
        firsts = np.sort(np.concatenate([part[::_SAMPLED, 0] for part in records]))
        block = max(1, _BLOCK_BYTES // (_SAMPLED * records[0].strides[0]))
        ends = np.unique(firsts[block::block])
        cuts = [np.split(part, np.searchsorted(part[:, 0], ends)) for part in records]
        chains = b"".join(_chains(shards, parts) for parts in zip(*cuts, strict=True))
    path = pairs_of(folder, bucket)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, chains)


def _chains(shards: Sequence[int], parts: Sequence[NDArray[np.uint32]]) -> bytes:
    """Return the pairs of adjacent equal records: (P, 4) uint32 shard, ordinal, shard, ordinal."""
    records = np.concatenate(parts)
    shard = np.repeat(np.array(shards, dtype=np.uint32), [len(part) for part in parts])
    order = np.lexsort(records[:, :-1].T[::-1])  # stable: keeps the order of equal minima
    minima = records[order, :-1]
    first = np.flatnonzero((minima[1:] == minima[:-1]).all(axis=1))
    one, other = order[first], order[first + 1]
    pairs = (shard[one], records[one, -1], shard[other], records[other, -1])
    return np.stack(pairs, axis=1).astype("<u4").tobytes()


def cluster(folder: Path, jaccard: float) -> tuple[int, int]:
    """Cluster the duplicates and write the ordinals to remove from each shard.

    Memory: about 200 bytes per candidate pair of a bucket, and 100 MB.

    Returns: number of documents removed, all but the first of each cluster; number of clusters.
    Raises: DataError if the pairs of a bucket are missing or cut off.
    """
    keys, a, b = _candidates(folder, bands(jaccard)[0])
    alike = _similarities(folder, keys, a, b) >= jaccard
    root = _roots(len(keys), a[alike], b[alike])
    gone = root != np.arange(len(keys))
    shards, ordinals = _places(keys[gone])
    with folder_written_whole(folder / "removed") as out:
        for shard in np.unique(shards):
            np.save(out / f"{shard:05d}.npy", ordinals[shards == shard])
    return int(gone.sum()), len(np.unique(root[gone]))


def removed(folder: Path, shard: int) -> NDArray[np.int64]:
    """Return the ordinals of the documents to remove from a shard, ascending: (m,) int64.

    Raises: DataError if `cluster` has not run.
    """
    if not (folder / "removed").is_dir():
        raise DataError(f"{folder} holds no clusters; start again")
    path = folder / "removed" / f"{shard:05d}.npy"
    ordinals: NDArray[np.int64] = np.load(path) if path.exists() else np.empty(0, np.int64)
    return ordinals


def _candidates(
    folder: Path, num_buckets: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Return keys of documents, ascending, and distinct pairs (P,) of indices, first < second."""
    lefts, rights = [], []  # each document of a chain, with the one before it and with the first
    for bucket in range(num_buckets):
        first, second = _read_pairs(pairs_of(folder, bucket))
        begins = np.ones(len(first), dtype=bool)
        begins[1:] = first[1:] != second[:-1]
        head = first[np.maximum.accumulate(np.where(begins, np.arange(len(first)), 0))]
        lefts += [first, head]
        rights += [second, second]
    left, right = np.concatenate(lefts), np.concatenate(rights)
    keys, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    a, b = places[: len(left)], places[len(left) :]
    pairs = np.unique(np.minimum(a, b) * len(keys) + np.maximum(a, b))
    return keys, pairs // max(1, len(keys)), pairs % max(1, len(keys))


def _read_pairs(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    try:
        numbers = np.fromfile(path, dtype="<u4")
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; start again") from error
    if path.stat().st_size % 16:
        raise DataError(
            f"{path} is cut off: {path.stat().st_size} bytes, not a multiple of 16; remove it and"
            " start again"
        )
    shard_1, ordinal_1, shard_2, ordinal_2 = numbers.reshape(-1, 4).astype(np.uint64).T
    return shard_1 << np.uint64(32) | ordinal_1, shard_2 << np.uint64(32) | ordinal_2


def _places(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return shard and ordinal of documents, whose keys are shard * 2**32 + ordinal."""
    return (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _similarities(
    folder: Path, keys: NDArray[np.uint64], a: NDArray[np.int64], b: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the estimated similarity of pairs, their share of equal minima: (P,) float64."""
    shards, ordinals = _places(keys)

    @lru_cache(maxsize=_OPEN_FILES)
    def whole(shard: int) -> NDArray[np.uint32]:
        sigs: NDArray[np.uint32] = np.load(folder / "whole" / f"{shard:05d}.npy", mmap_mode="r")
        return sigs

    def rows(places: NDArray[np.int64]) -> NDArray[np.uint32]:
        out = np.empty((len(places), NUM_HASHES), dtype=np.uint32)
        for shard in np.unique(shards[places]):
            mine = shards[places] == shard
            out[mine] = whole(int(shard))[ordinals[places[mine]]]
        return out

    found = np.empty(len(a), dtype=np.float64)
    for begin in range(0, len(a), _BLOCK_PAIRS):
        block = slice(begin, begin + _BLOCK_PAIRS)
        found[block] = (rows(a[block]) == rows(b[block])).mean(axis=1)
    return found


def _roots(number: int, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the smallest member of each document's cluster (union-find): (number,) int64."""
    # Each round links every root to the lowest that it has a pair with, flattens the trees, and
    # drops the pairs within a tree: a few rounds, each linear in the number of pairs.
    root = np.arange(number)
    while len(a):
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        np.minimum.at(root, high, low)
        while np.any(root != (flat := root[root])):
            root = flat
        apart = root[a] != root[b]
        a, b = a[apart], b[apart]
    return root
