"""A factor f on the stated errors of spectra, beside the scatter of every pixel, by its mode.

ln p(r_n | f) = -1/2 sum_l [ln(f^2 sigma_nl^2 + s_l^2) + r_nl^2 / (f^2 sigma_nl^2 + s_l^2)],   ln f ~ N(0, 1)

r_nl^2 is the expected square of the residual, over what is not known of the star and of the coefficients. Where the
errors of all stars have one pattern along the spectrum, sigma_nl = a_n b_l, training cannot tell the factors of
its stars from a scatter of that pattern: only the variances f_n^2 sigma_nl^2 + s_l^2 are known then.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compress import STARS
from .linalg import outer_pairs, pack, pairs

WIDTH = 1.0
"""Sd of ln f before anything is seen: a factor of three either way is nothing unusual."""
LARGEST_STEP = 0.7
"""In ln f."""
DONE = 1e-6


class Slopes(NamedTuple):
    """Slope and Fisher information of the log density in ln f, for N stars."""

    slope: np.ndarray
    fisher: np.ndarray


def expected_residual2(
    value: np.ndarray, phi: np.ndarray, second: np.ndarray, theta: np.ndarray, covariance: np.ndarray
) -> np.ndarray:
    """E[(y_nl - theta_l . phi_n)^2] (N, L) of spectra (N, L), NaN where missing.

    phi (N, K), second (N, K (K + 1) / 2): E[phi], packed E[phi phi']; theta (L, K), covariance (L, K, K).
    """
    both = (outer_pairs(theta) + pack(covariance)) * pairs(theta.shape[1])[2]
    return np.maximum(value**2 - 2 * value * (phi @ theta.T) + second @ both.T, 0.0)


def slopes(ln_f: np.ndarray, residual2: np.ndarray, variance: np.ndarray, scatter2: np.ndarray) -> Slopes:
    """At ln f (N,); residual2 and variance (N, L), NaN where missing or not trained; scatter2 (L,)."""
    stated = variance * np.exp(2 * ln_f)[:, None]
    share = stated / (stated + scatter2)
    excess = residual2 / (stated + scatter2) - 1
    return Slopes(np.nansum(share * excess, 1), 2 * np.nansum(np.where(np.isnan(excess), np.nan, share**2), 1))


def error_factors(
    residual2: np.ndarray, variance: np.ndarray, scatter2: np.ndarray, start: np.ndarray | float = 0.0,
    *, together: bool = False, steps: int = 30,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """ln f (N,) at its mode and its sd (N,): of every star, or of all together; from a start, in so many steps."""
    n = len(residual2)
    ln_f = np.broadcast_to(np.asarray(start, float), n).copy()
    sd, left = np.full(n, WIDTH), np.ones(n, bool)
    for _ in range(steps):
        parts = [
            slopes(ln_f[i : i + STARS], residual2[i : i + STARS], variance[i : i + STARS], scatter2)
            for i in range(0, n, STARS)
        ]
        slope, fisher = (np.concatenate(x) for x in zip(*parts, strict=True))
        if together:
            slope, fisher = np.full(n, slope.sum()), np.full(n, fisher.sum())
        information = fisher + WIDTH**-2
        step = np.clip((slope - ln_f / WIDTH**2) / information, -LARGEST_STEP, LARGEST_STEP)
        ln_f, sd = ln_f + np.where(left, step, 0.0), information**-0.5
        left &= np.abs(step) > DONE  # each for itself: a star is the same in any company
        if not left.any():
            break
    return ln_f, sd
