"""A pseudo-random permutation that is computed only at the positions asked for."""

import math

import numpy as np
from jaxtyping import Int, UInt64

DRAWN_WHOLE = 2**16
"""Permutations of at most this many numbers are drawn as a whole (in 0.9 ms at most).

Then every order is equally likely, which a cheap permutation of single positions cannot promise
for a handful of examples.
"""
ROUNDS = 6
"""Rounds of the Feistel network. Four already make it hard to tell from a random permutation
(Luby and Rackoff, 1988)."""


def permuted(
    position: Int[np.ndarray, " some"], count: int, *, seed: tuple[int, ...]
) -> Int[np.ndarray, " some"]:
    """The entries of a pseudo-random permutation of `0 .. count - 1` at the given positions.

    The permutation is a function of `seed` and `count` alone. The work grows with the number of
    positions, and with `count` only up to `DRAWN_WHOLE`.

    Grain's `index_shuffle` serves the same purpose. It is not used because it repeats one number
    and omits another if `count` is a power of four plus one (as of Grain 0.2.18), takes
    milliseconds a position if `count` is small, and is experimental: another order in a later
    version would break the reproducibility of runs.
    """
    if count <= DRAWN_WHOLE:
        return np.random.default_rng(seed).permutation(count)[position]
    # A grid with at least `count` cells, and less than one row more.
    rows = math.isqrt(count - 1) + 1
    columns = -(-count // rows)
    keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)
    entry = _permuted_cells(position.astype(np.uint64), rows, columns, keys)
    # Cells beyond `count` are permuted again until they land inside ("cycle walking"). Every cycle
    # of a permutation leads back to its start, so this ends, and no two cells end at the same one.
    while (outside := entry >= count).any():
        entry[outside] = _permuted_cells(entry[outside], rows, columns, keys)
    return entry.astype(position.dtype)


def _permuted_cells(
    cell: UInt64[np.ndarray, " some"], rows: int, columns: int, keys: UInt64[np.ndarray, " rounds"]
) -> UInt64[np.ndarray, " some"]:
    """A Feistel network over the cells of a grid, numbered row by row.

    Each round shifts one coordinate by a hash of the other. It can be undone, since the other one
    stays as it was; so the whole is a permutation, whatever the hash.

    Args:
        cell: Numbers of cells.
        rows: Height of the grid.
        columns: Width of the grid.
        keys: A random word for each round.

    Returns:
        The numbers of the cells that these are moved to.
    """
    row, column = np.divmod(cell, np.uint64(columns))
    for number, key in enumerate(keys):
        if number % 2 == 0:
            row = (row + _hashed(column ^ key) % np.uint64(rows)) % np.uint64(rows)
        else:
            column = (column + _hashed(row ^ key) % np.uint64(columns)) % np.uint64(columns)
    return row * np.uint64(columns) + column


def _hashed(word: UInt64[np.ndarray, " some"]) -> UInt64[np.ndarray, " some"]:
    """The finalizer of SplitMix64 (Steele et al., 2014).

    Each bit of the input changes about half of the bits of the output.
    """
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
