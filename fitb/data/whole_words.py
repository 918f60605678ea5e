"""Choice of whole words to mask, each with the same probability, and of a fixed number of tokens.

Legend: B rows, W largest number of words in a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fitb.base import rng

_EXCHANGE, _LAST = 15, 16  # purposes of random keys
_SIZES, _BITS = 2**16 - 1, np.uint64(48)  # largest size, and bits of a key below it in a sort key


def equal_shares(
    key: NDArray[np.uint64], sizes: NDArray[np.int64], budget: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Choose words with equal probability whatever their size, and `budget` tokens in each row.

    Every word that fits the budget begins with the probability budget / tokens. From the largest
    word to the smallest, two at a time exchange probability until one of them is decided: what one
    gains, weighted by its size, the other loses, at random in the direction that keeps the mean of
    both (the cube method with one constraint: Deville and Tille 2004, Biometrika 91, p. 893). So
    the number of tokens is kept too, and words of one token take what is left. Where sizes do not
    add up, which is rare, a set of words is searched that has as many tokens as any set can have.

    Args:
        key: (B, W) uint64, random keys of the words, distinct within a row.
        sizes: (B, W) int64, tokens of each word; 0: no word.
        budget: (B,) int64, tokens to choose.
    Returns: (B, W) bool.
    """
    fits = (sizes > 0) & (sizes <= budget[:, None])
    sizes = np.where(fits, sizes, 0)
    largest_first = (_SIZES - sizes).astype(np.uint64) << _BITS  # those of a size in random order
    order = np.argsort(largest_first | key >> (np.uint64(64) - _BITS), axis=1)
    sizes, key = np.take_along_axis(sizes, order, axis=1), np.take_along_axis(key, order, axis=1)
    tokens = sizes.sum(axis=1)
    chosen, left = _exchange(key, sizes, budget / np.maximum(tokens, 1), budget)
    singles = sizes == 1
    number = np.cumsum(singles, axis=1)
    chosen |= singles & (number <= left[:, None])
    left -= np.minimum(left, number[:, -1:].sum(axis=1))
    for row in np.flatnonzero((left > 0) & (chosen.sum(axis=1) < fits.sum(axis=1))):
        chosen[row] = _largest_set(key[row], sizes[row], int(budget[row]))
    by_word = np.zeros_like(chosen)
    np.put_along_axis(by_word, order, chosen, axis=1)
    return by_word


def _exchange(
    key: NDArray[np.uint64],
    sizes: NDArray[np.int64],
    share: NDArray[np.float64],
    budget: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Decide all words of several tokens: return them, (B, W) bool, and the tokens left, (B,).

    One word of each row is open at a time; `part` is its probability, and it meets the next one.
    """
    rows, num_singles = np.arange(len(sizes)), np.count_nonzero(sizes == 1, axis=1)
    chosen = np.zeros(sizes.shape, dtype=bool)
    left = budget.copy()
    place, size, part = np.zeros_like(left), np.ones_like(left), np.zeros(len(left))
    share = np.minimum(share, 1.0)
    most = int(np.count_nonzero(sizes > 1, axis=1).max(initial=0))
    drawn = rng.uniform(_EXCHANGE, key[:, :most])
    for new in range(most):
        new_size = sizes[:, new]
        met = new_size > 1
        # Tokens that may pass from the new word to the open one, and back, until one is decided.
        gives, takes = new_size * share, new_size * (1 - share)
        room, mass = size * (1 - part), size * part
        forth, back = np.minimum(room, gives), np.minimum(mass, takes)
        rises = drawn[:, new] * (forth + back) < back
        open_wins = met & rises & (room <= gives)
        open_loses = met & ~rises & (mass <= takes)
        new_wins = met & ~rises & ~open_loses
        stays = np.where(rises, part + gives / size, part - takes / size)
        replaces = share + np.where(rises, -room, mass) / np.maximum(new_size, 1)
        chosen[rows[open_wins], place[open_wins]] = True
        chosen[rows[new_wins], new] = True
        left -= np.where(open_wins, size, 0) + np.where(new_wins, new_size, 0)
        changed = open_wins | open_loses
        part = np.where(changed, replaces, np.where(met, stays, part))
        place, size = np.where(changed, new, place), np.where(changed, new_size, size)
    possible = (part > 0) & (size <= left) & (left - size <= num_singles)
    wins = possible & ((left > num_singles) | (rng.uniform(_LAST, key[rows, place]) < part))
    chosen[rows[wins], place[wins]] = True
    return chosen, left - np.where(wins, size, 0)


def _largest_set(
    key: NDArray[np.uint64], sizes: NDArray[np.int64], budget: int
) -> NDArray[np.bool_]:
    """Choose words, in random order, with as many tokens as any set of at most `budget` has.

    A bit set of all sums per suffix of the order (dynamic programming): W x budget bits.
    """
    order = [place for place in np.argsort(key).tolist() if sizes[place]]
    sums = [1]  # bit i: a set of the words from here on has i tokens
    for place in reversed(order):
        sums.append((sums[-1] | sums[-1] << int(sizes[place])) & ((2 << budget) - 1))
    left = sums[-1].bit_length() - 1
    chosen = np.zeros(len(sizes), dtype=bool)
    for place, rest in zip(order, reversed(sums[:-1]), strict=True):
        size = int(sizes[place])
        if size <= left and rest >> (left - size) & 1:
            chosen[place], left = True, left - size
    return chosen
