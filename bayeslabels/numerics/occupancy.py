"""Where a training set is: two-dimensional histograms of every pair of its columns (Thomas+24, section 2.2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Occupancy(NamedTuple):
    """low, high (D,): range of each column; counts (P, bins, bins): of the P pairs of columns, (0, 0) if D = 1."""

    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray

    @property
    def pairs(self) -> list[tuple[int, int]]:
        d = len(self.low)
        return [(i, j) for i in range(d) for j in range(i + 1, d)] or [(0, 0)]

    def bins(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bin (N, D) of each number, and whether it is within the range; NaN is in none."""
        size = np.maximum(self.high - self.low, 1e-300)
        scaled = np.nan_to_num((x - self.low) / size, nan=-1.0)
        n = self.counts.shape[-1]
        return np.clip((scaled * n).astype(int), 0, n - 1), (scaled >= 0) & (scaled <= 1)

    def outside(self, x: np.ndarray, threshold: int = 1) -> np.ndarray:
        """(N, P): pairs that lie in a bin with fewer than `threshold` training stars; NaN lies nowhere, and passes."""
        at, within = self.bins(x)
        known = np.isfinite(x)
        out = np.empty((len(x), len(self.pairs)), bool)
        for p, (i, j) in enumerate(self.pairs):
            fits = (self.counts[p, at[:, i], at[:, j]] >= threshold) & within[:, i] & within[:, j]
            out[:, p] = ~fits & known[:, i] & known[:, j]
        return out


def learn(x: np.ndarray, n_bin: int = 30) -> Occupancy:
    """The occupancy of x (N, D); NaN are left out."""
    low, high = np.nanmin(x, 0), np.nanmax(x, 0)
    d = x.shape[1]
    empty = Occupancy(low, high, np.zeros((max(1, d * (d - 1) // 2), n_bin, n_bin), int))
    at, _ = empty.bins(x)
    known = np.isfinite(x)
    for p, (i, j) in enumerate(empty.pairs):
        both = known[:, i] & known[:, j]
        np.add.at(empty.counts[p], (at[both, i], at[both, j]), 1)
    return empty
