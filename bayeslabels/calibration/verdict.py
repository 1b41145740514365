"""Are ranks uniform? One verdict over many quantities.

Of every quantity, normal scores z = Phi^-1((rank + U) / (n_draw + 1)), U uniform, are tested for mean 0 (z test),
for variance 1 (chi^2 test) and for normality (Kolmogorov-Smirnov). All three p-values are exact where the ranks are
uniform on 0, ..., n_draw; the verdict's is the smallest of all, times their number (Bonferroni): never too small,
however the quantities are correlated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import binom, chi2, kstest, norm

TESTS = ("mean", "sd", "shape")


class Verdict(NamedTuple):
    """Verdict on n simulations of Q quantities: mean and sd of the normal scores (Q,), p-values (Q, 3) in the order of
    `TESTS`, and the p-value of all together."""

    mean: np.ndarray
    sd: np.ndarray
    p_values: np.ndarray
    p_value: float


def uniform_verdict(pit: np.ndarray) -> Verdict:
    """pit (n, Q): between 0 and 1, uniform if calibrated; NaN rows are left out."""
    z = norm.ppf(pit[np.isfinite(pit).all(1)])
    n = len(z)
    p_mean = 2 * norm.sf(np.abs(z.sum(0)) / np.sqrt(n))
    total = (z**2).sum(0)
    p_sd = np.minimum(1.0, 2 * np.minimum(chi2.cdf(total, n), chi2.sf(total, n)))
    p_shape = np.array([kstest(column, "norm").pvalue for column in z.T])
    p = np.stack([p_mean, p_sd, p_shape], 1)
    return Verdict(z.mean(0), np.sqrt(total / n), p, float(min(1.0, p.size * p.min())))


def ranks_of(truth: np.ndarray, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rank (Q,) of the truth (Q,) among draws (S, Q), ties broken at random; -1 where either is not finite."""
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    rank = below + (rng.random(len(truth)) * (equal + 1)).astype(int)
    return np.where(np.isfinite(truth) & np.isfinite(draws).all(0), rank, -1)


def ecdf_band(
    n: int, probability: float, seed: int = 0, points: int = 100
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the ECDF of n uniform numbers, less the diagonal, lies everywhere at once with this probability.

    Points in (0, 1), lower and upper limit (Säilynoja, Bürkner & Vehtari 2022, section 2: by simulation).
    """
    x = np.arange(1, points) / points
    u = np.random.default_rng([seed, 214]).random((1000, n))
    counts = (u[:, :, None] <= x).sum(1) if n * points < 10**6 else np.array([(row[:, None] <= x).sum(0) for row in u])
    tail = np.minimum(binom.cdf(counts, n, x), binom.sf(counts - 1, n, x)).min(1)
    level = np.quantile(tail, 1 - probability)
    return x, binom.ppf(level, n, x) / n - x, binom.isf(level, n, x) / n - x
