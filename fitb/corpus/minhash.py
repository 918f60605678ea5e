"""Near-duplicates: MinHash signatures, buckets, candidate pairs, clusters, and what to remove.

Documents are alike when the sets of their word 5-grams are: |A & B| / |A | B|, the Jaccard
similarity (Broder 1997). A signature of 256 minima keeps it: the share of equal minima estimates it
within 0.02. Documents that agree in all minima of one of some buckets are candidates, found by
sorting instead of comparing every pair; a candidate pair is a duplicate where the estimate over the
whole signatures reaches the threshold. Of a cluster of duplicates the first document stays, in the
order of (shard, ordinal), whatever the number of workers.

Dimensions: n documents, H minima (256), P pairs.

    folder/buckets/bucket_000/00000.minhash.sig   per bucket and shard; minima, ordinal; sorted
    folder/whole/00000.npy, 00000.ordinals.npy    (n, H) uint32 and (n,) int64 of a shard
    folder/pairs/00000.pairs                      per bucket; shard, ordinal, shard, ordinal
    folder/removed/00000.npy                      per shard; ordinals, sorted, int64
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from fitb.base.errors import ConfigError, DataError
from fitb.base.fsio import folder_written_whole, write_atomic

NUM_HASHES = 256
JACCARD = 0.8

_NO_WORD = np.uint32(0xFFFFFFFF)  # all minima of a text without words
_SHINGLE_WORDS = 5
_SEED = 1  # of the hash functions; part of the format, as signatures of other seeds never meet
_BLOCK_WORDS = 8192  # hashed at a time: the shingles of a long text are never all in memory
_MAX_BUCKETS = 20  # a task and a sorted file each
_RECALL = 0.99
_BLOCK_PAIRS = 1 << 15  # 64 MB of signatures at a time
_BLOCK_BYTES = 1 << 26  # of a bucket's records, sorted at a time
_SAMPLED = 256  # one record in so many tells where the blocks end
_OPEN_FILES = 128
WORDS = 2  # how texts are cut into words; 1 took the vowel signs of many scripts for spaces
_WORD = regex.compile(r"\w+")
# Scripts that put no space between words: kana, Han and its extensions.
_UNSPACED = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Clusters:
    """What clustering found.

    Args:
        candidates: different pairs of documents that share a bucket.
        pairs: those whose estimated similarity reaches the threshold.
        clusters: of two documents or more.
        removed: documents; all but the first of each cluster.
    """

    candidates: int
    pairs: int
    clusters: int
    removed: int


def bands(jaccard: float) -> tuple[int, int]:
    """Return (buckets, hashes in each) that find pairs at the threshold.

    A pair of similarity s shares a bucket of r hashes with probability s^r. The longest r is taken
    with which at most 20 buckets and 256 hashes miss no more than 1 % of the pairs at the
    threshold: longer buckets hold fewer pairs that are not alike.

    Raises: ConfigError where the threshold is not in 0.5 .. 1.
    """
    if not 0.5 <= jaccard <= 1:
        raise ConfigError(f"jaccard={jaccard}; from 0.5 to 1, as less makes candidates of all")
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

    Words are runs of letters, digits and underscores, lower-cased; a Han or kana character is a
    word. A text of fewer than five words is one shingle. A text without any gets the signature of
    nothing, which `write_signatures` leaves out. Memory: 1 kB a text, a few MB, and three more
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
    held = list(islice(words, _SHINGLE_WORDS - 1))
    block = list(islice(words, _BLOCK_WORDS))
    if held and not block:
        yield [" ".join(held)]
    while block:
        run = held + block
        shifted = (run[i:] for i in range(_SHINGLE_WORDS))
        yield [" ".join(gram) for gram in zip(*shifted, strict=False)]
        held = run[1 - _SHINGLE_WORDS :]
        block = list(islice(words, _BLOCK_WORDS))


def write_signatures(
    folder: Path,
    shard: int,
    sigs: NDArray[np.uint32],
    ordinals: NDArray[np.int64],
    jaccard: float = JACCARD,
) -> int:
    """Write what the buckets and the clustering read of one shard; each file whole or not at all.

    Args:
        folder: of this deduplication; the same for all shards and steps.
        shard: number of the shard, below 2**32.
        sigs: (n, H) uint32 from `signatures`.
        ordinals: (n,) of the documents in their shard, ascending, below 2**32.
        jaccard: threshold; the same for all shards and steps.
    Returns: number of documents with a word; the others are never duplicates.
    """
    assert len(sigs) == len(ordinals) and np.all(np.diff(ordinals) > 0), "ordinals must ascend"
    spoken = (sigs != _NO_WORD).any(axis=1)
    sigs, ordinals = sigs[spoken], np.asarray(ordinals, dtype=np.int64)[spoken]
    num_buckets, num_hashes = bands(jaccard)
    whole = folder / "whole"
    whole.mkdir(parents=True, exist_ok=True)
    for bucket in range(num_buckets):
        part = sigs[:, bucket * num_hashes : (bucket + 1) * num_hashes]
        records = np.empty((len(part), num_hashes + 1), dtype="<u4")
        order = np.lexsort((ordinals, *part.T[::-1]))
        records[:, :-1], records[:, -1] = part[order], ordinals[order]
        path = folder / "buckets" / f"bucket_{bucket:03d}" / f"{shard:05d}.minhash.sig"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, records.tobytes())
    _save(whole / f"{shard:05d}.npy", sigs)
    _save(whole / f"{shard:05d}.ordinals.npy", ordinals)
    return len(sigs)


def _save(path: Path, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())


def pairs_of(folder: Path, bucket: int) -> Path:
    """Return the file of a bucket's candidates."""
    return folder / "pairs" / f"{bucket:05d}.pairs"


def find_pairs(folder: Path, bucket: int, jaccard: float = JACCARD) -> None:
    """Write the candidates of a bucket, after the signatures of all shards.

    The documents of equal minima become a chain in the order of (shard, ordinal): (A, B), (B, C).
    Memory: that of a block of records, and more only where so many documents share a minimum.
    """
    num_hashes = bands(jaccard)[1]
    shards: list[int] = []
    records: list[NDArray[np.uint32]] = []
    for path in sorted((folder / "buckets" / f"bucket_{bucket:03d}").glob("*.minhash.sig")):
        if path.stat().st_size:  # else no document of the shard has a word
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
    """Return the pairs among records of several shards: (P, 4) shard, ordinal, shard, ordinal."""
    records = np.concatenate(parts)
    shard = np.repeat(np.array(shards, dtype=np.uint32), [len(part) for part in parts])
    order = np.lexsort(records[:, :-1].T[::-1])  # stable: equal minima stay in their order
    minima = records[order, :-1]
    first = np.flatnonzero((minima[1:] == minima[:-1]).all(axis=1))
    one, other = order[first], order[first + 1]
    pairs = (shard[one], records[one, -1], shard[other], records[other, -1])
    return np.stack(pairs, axis=1).astype("<u4").tobytes()


def cluster(folder: Path, jaccard: float = JACCARD) -> Clusters:
    """Join duplicates into clusters and write the removal list of each shard.

    Memory: about 200 bytes for each candidate pair that a bucket found, and 100 MB.

    Raises: DataError where a bucket's pairs are missing or cut off.
    """
    keys, a, b = _candidates(folder, bands(jaccard)[0])
    alike = _similarities(folder, keys, a, b) >= jaccard
    root = _roots(len(keys), a[alike], b[alike])
    gone = root != np.arange(len(keys))
    with folder_written_whole(folder / "removed") as out:
        shards = keys[gone] >> np.uint64(32)
        for shard in np.unique(shards):
            ordinals = keys[gone][shards == shard] & np.uint64(0xFFFFFFFF)
            _save(out / f"{shard:05d}.npy", ordinals.astype(np.int64))
    return Clusters(
        candidates=len(a),
        pairs=int(alike.sum()),
        clusters=len(np.unique(root[gone])),
        removed=int(gone.sum()),
    )


def removed(folder: Path, shard: int) -> NDArray[np.int64]:
    """Return the ordinals of a shard's documents to remove, ascending; none is an empty array.

    Raises: DataError where `cluster` has not run.
    """
    if not (folder / "removed").is_dir():
        raise DataError(f"{folder} holds no clusters; run the clustering step first")
    path = folder / "removed" / f"{shard:05d}.npy"
    ordinals: NDArray[np.int64] = np.load(path) if path.exists() else np.empty(0, np.int64)
    return ordinals


def _candidates(
    folder: Path, num_buckets: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the documents of candidate pairs, as ascending keys, and each pair once.

    Each document of a chain is compared with the one before it and with the first.

    Returns: (documents,) shard * 2**32 + ordinal; two arrays (P,) of places in it, first < second.
    """
    lefts, rights = [], []
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
        raise DataError(f"{path} is missing; run the bucket step of this bucket again") from error
    if path.stat().st_size % 16:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes, no multiple of 16: it is cut off; run the"
            " bucket step of this bucket again"
        )
    shard_1, ordinal_1, shard_2, ordinal_2 = numbers.reshape(-1, 4).astype(np.uint64).T
    return shard_1 << np.uint64(32) | ordinal_1, shard_2 << np.uint64(32) | ordinal_2


def _similarities(
    folder: Path, keys: NDArray[np.uint64], a: NDArray[np.int64], b: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Estimate the similarity of pairs: (P,) float64, the share of equal minima."""

    @lru_cache(maxsize=_OPEN_FILES)
    def shard_of(number: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        stem = folder / "whole" / f"{number:05d}"
        return np.load(f"{stem}.npy", mmap_mode="r"), np.load(f"{stem}.ordinals.npy")

    def rows(places: NDArray[np.int64]) -> NDArray[np.uint32]:
        out = np.empty((len(places), NUM_HASHES), dtype=np.uint32)
        shards, ordinals = keys[places] >> np.uint64(32), keys[places] & np.uint64(0xFFFFFFFF)
        for number in np.unique(shards):
            sigs, held = shard_of(int(number))
            mine = shards == number
            out[mine] = sigs[np.searchsorted(held, ordinals[mine].astype(np.int64))]
        return out

    found = np.empty(len(a), dtype=np.float64)
    for begin in range(0, len(a), _BLOCK_PAIRS):
        block = slice(begin, begin + _BLOCK_PAIRS)
        found[block] = (rows(a[block]) == rows(b[block])).mean(axis=1)
    return found


def _roots(number: int, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the lowest member of each one's cluster: (number,) int64.

    Every round hangs the roots that have a pair with a lower root under it and flattens the trees;
    pairs within one tree are done. It takes a handful of rounds, each linear in the pairs.
    """
    root = np.arange(number)
    while len(a):
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        np.minimum.at(root, high, low)
        while np.any(root != (flat := root[root])):
            root = flat
        apart = root[a] != root[b]
        a, b = a[apart], b[apart]
    return root
