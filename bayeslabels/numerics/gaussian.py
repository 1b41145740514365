"""Gaussian densities of vectors of which some numbers are missing."""

from __future__ import annotations

import numpy as np


def log_density_of(offset: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """ln N(offset; 0, covariance) (N,) of those numbers of offset (N, M) that are not NaN; NaN where none is.

    covariance: (N, M, M).
    """
    out = np.full(len(offset), np.nan)
    for n, (x, matrix) in enumerate(zip(offset, covariance, strict=True)):
        at = np.flatnonzero(np.isfinite(x))
        if len(at):
            some = matrix[np.ix_(at, at)]
            log_det = np.linalg.slogdet(2 * np.pi * some)[1]
            out[n] = -0.5 * (x[at] @ np.linalg.solve(some, x[at]) + log_det)
    return out
