"""Digests of what was measured of every star, from which its random numbers and its place among others follow."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from ..numerics.own_variates import mixed, shuffled
from .stars import Block, Stars

NUMBERS = 2**16
"""Numbers hashed at a time: they stay in the cache."""
FILL = np.pi
"""By which numbers are multiplied, for other last digits than the zeros that rounded and single ones end in."""


def digests(stars: Stars, blocks: Sequence[str]) -> np.ndarray:
    """(N,) of 64 bits, of the measured numbers, by their errors where these are stated, in these blocks.

    What is missing has no part in them, nor has the order of blocks and of their columns, nor the stars' ids, of which
    it is not known whether they are names or row numbers: two stars of equal numbers have equal digests.
    """
    out = np.zeros(len(stars), np.uint64)
    for name in blocks:
        if name in stars:
            total = _of_block(stars[name])
            out += np.where(total == 0, total, mixed(total + np.uint64(zlib.crc32(name.encode()))))
    return out


def in_order(digests: np.ndarray, seed: int) -> np.ndarray:
    """The rows (N,) in a random order that follows from the stars' digests and the seed, not from their order."""
    return np.argsort(shuffled(digests, seed), kind="stable")


def _of_block(block: Block) -> np.ndarray:
    """Sum over the measured numbers of hashes of their bits: 0 where there is none."""
    n, size = block.n_star, max(1, NUMBERS // block.n_dim)
    return np.concatenate([_of_rows(block[first : first + size]) for first in range(0, n, size)])


def _of_rows(block: Block) -> np.ndarray:
    value = np.asarray(block.value, float)
    with np.errstate(all="ignore"):
        x = value * FILL if block.error is None else value / (FILL * _spread(block))
    x += 0.0  # -0 is 0
    np.copyto(x, 0.0, where=~np.isfinite(x))
    bits = x.view(np.uint64)
    bits ^= bits >> np.uint64(32)
    return np.einsum("nl,nl->n", bits, bits)


def _spread(block: Block) -> np.ndarray:
    """Errors, or variances of covariances (N, D)."""
    error = np.asarray(block.error, float)
    return np.diagonal(error, axis1=1, axis2=2) if block.has_covariance else error
