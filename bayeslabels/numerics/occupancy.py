"""Where a training set is: two-dimensional histograms of every pair of its columns (Thomas+24, section 2.2).

A pair of numbers lies outside if its cell and the eight cells around it hold too few training stars. The paper looks at
the cell alone, of which 30 x 30 are mostly empty unless the stars are many: most of what it flags is then inside. Here
the cells are as many as the stars allow: almost none of them may be without another star around it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ALONE = 0.01
"""Share of the training stars, at most, that would be outside of a training set that lacks them."""
JUDGED = 20_000
"""Training stars, about, that the number of cells is chosen by, at most."""


class Occupancy(NamedTuple):
    """low, high (D,): range of each column; counts (P, bins, bins): of the P pairs of columns, (0, 0) if D = 1."""

    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray

    @property
    def pairs(self) -> list[tuple[int, int]]:
        d = len(self.low)
        return [(i, j) for i in range(d) for j in range(i + 1, d)] or [(0, 0)]

    def cells(self, x: np.ndarray) -> np.ndarray:
        """Cell (N, D) of each number, from -2 to bins + 1 beyond the range on either side, NaN somewhere."""
        n = self.counts.shape[-1]
        with np.errstate(over="ignore"):
            scaled = np.nan_to_num((x - self.low) / np.maximum(self.high - self.low, 1e-300)) * n
        return np.where(x == self.high, n - 1, np.floor(np.clip(scaled, -2, n + 1))).astype(int)

    def around(self, x: np.ndarray) -> np.ndarray:
        """(N, P): training stars in the cell of each pair of numbers and in the eight around it."""
        at = self.cells(x) + 2
        out = np.empty((len(x), len(self.pairs)), int)
        for p, (i, j) in enumerate(self.pairs):
            padded = np.pad(self.counts[p], 3)
            rows = padded[:-2] + padded[1:-1] + padded[2:]
            out[:, p] = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:])[at[:, i], at[:, j]]
        return out

    def outside(self, x: np.ndarray, threshold: int = 1) -> np.ndarray:
        """(N, P): pairs with fewer than `threshold` training stars around them; NaN lies nowhere, and passes."""
        known = np.isfinite(x)
        i, j = np.array(self.pairs).T
        return (self.around(x) < threshold) & known[:, i] & known[:, j]


def learn(x: np.ndarray, most: int = 30, threshold: int = 1) -> Occupancy:
    """The occupancy of x (N, D), NaN left out, with at most so many cells a side, and fewer of few stars."""
    judged = x[:: max(1, len(x) // JUDGED)]
    fewest, best = 1, _counted(x, 1)
    while fewest < most:
        middle = (fewest + most + 1) // 2
        now = _counted(x, middle)
        if now.outside(judged, threshold + 1).any(1).mean() <= ALONE:  # a star is not its own neighbour
            fewest, best = middle, now
        else:
            most = middle - 1
    return best


def _counted(x: np.ndarray, bins: int) -> Occupancy:
    low, high = np.nanmin(x, 0), np.nanmax(x, 0)
    d = x.shape[1]
    empty = Occupancy(low, high, np.zeros((max(1, d * (d - 1) // 2), bins, bins), int))
    at, known = np.clip(empty.cells(x), 0, bins - 1), np.isfinite(x)
    for p, (i, j) in enumerate(empty.pairs):
        both = known[:, i] & known[:, j]
        np.add.at(empty.counts[p], (at[both, i], at[both, j]), 1)
    return empty
