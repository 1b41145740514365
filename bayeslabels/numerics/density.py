"""Where a function was trained: the density of its training points, band by band."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

BANDWIDTH = 0.25
"""Of the kernel, in scaled labels."""


def density_of(training: np.ndarray, seen: np.ndarray, u: np.ndarray, bandwidth: float = BANDWIDTH) -> np.ndarray:
    """Kernel density (N, B) at u (N, L) of the training points (n, L) with each band seen (n, B), its peak 1.

    As Green+21, section 6, recommend to judge by: below 1e-2 of the peak absolute magnitudes, below 1e-3 colours, are
    extrapolated.
    """
    out = np.full((len(u), seen.shape[1]), np.nan)
    good = np.isfinite(u).all(1)
    if not good.any():
        return out
    own = _sums(training, seen, training, bandwidth)
    peak = np.maximum(np.where(seen, own, 0.0).max(0), 1e-300)
    out[good] = _sums(training, seen, u[good], bandwidth) / peak
    return out


def _sums(training: np.ndarray, seen: np.ndarray, u: np.ndarray, bandwidth: float) -> np.ndarray:
    """Kernel sums (N, B), of the neighbours within five bandwidths."""
    tree = cKDTree(training)
    near = tree.query_ball_point(u, 5 * bandwidth)
    count = np.array([len(x) for x in near])
    index = np.concatenate([np.asarray(x, int) for x in near]) if count.sum() else np.zeros(0, int)
    row = np.repeat(np.arange(len(u)), count)
    kernel = np.exp(-0.5 * ((training[index] - u[row]) ** 2).sum(1) / bandwidth**2)
    out = np.zeros((len(u), seen.shape[1]))
    for b in range(seen.shape[1]):
        out[:, b] = np.bincount(row, kernel * seen[index, b], len(u))
    return out
