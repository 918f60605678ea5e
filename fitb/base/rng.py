"""Counter-based randomness: a hash of a seed and integers, the same on every machine.

Order, masks and dropout are functions of these keys, so there is no generator state to save, and a
run can resume at any step with any number of ranks. The mixer is splitmix64's finaliser (Steele,
Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014, figure 17).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers bijectively.

    Args:
        values: any shape, uint64.
    Returns: same shape, uint64.
    """
    mixed = values >> np.uint64(30)  # in place from here on, to save allocations
    mixed ^= values
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def keyed(seed: int, *parts: ArrayLike) -> NDArray[np.uint64]:
    """Hash a seed and integers to 64 random bits; parts broadcast against each other.

    Args:
        seed: any integer, taken modulo 2**64.
        parts: integers or integer arrays, at least 0.
    Returns: uint64 of the broadcast shape.
    """
    with np.errstate(over="ignore"):
        state = mix(np.asarray(seed % 2**64, dtype=np.uint64) + _GOLDEN)
        for part in parts:
            state = mix((state ^ np.asarray(part).astype(np.uint64)) + _GOLDEN)
    return state


def uniform(seed: int, *parts: ArrayLike) -> NDArray[np.float64]:
    """Hash to float64 in [0, 1), 53 bits."""
    return (keyed(seed, *parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(index: ArrayLike, size: int, key: int) -> NDArray[np.int64]:
    """Apply a keyed permutation of 0 .. size - 1.

    A balanced Feistel network of eight rounds over the next even power of two, with cycle walking
    until the image is in range (Black and Rogaway: Ciphers with arbitrary finite domains, CT-RSA
    2002): O(1) memory and random access. Permutations are not equally likely: at size 5 or 6 single
    ones are 10 % off, and at size 4 ** n all of them are even.

    Args:
        index: integers in [0, size), any shape.
        size: number of elements, at least 1.
        key: seed of the permutation.
    Returns: the images, int64, same shape.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    rounds = keyed(key, np.arange(8))  # keyed(key, round, right) before its last part
    flat = np.array(index, dtype=np.uint64).reshape(-1)
    todo = np.arange(len(flat))
    walking = flat
    while len(todo):
        left, right = walking >> half, walking & low
        for state in rounds:
            left, right = right, left ^ (mix((right ^ state) + _GOLDEN) & low)
        walking = (left << half) | right
        flat[todo] = walking
        outside = walking >= size
        todo, walking = todo[outside], walking[outside]
    return flat.astype(np.int64).reshape(np.shape(index))
