"""How many stars there are, from how many a survey has that chose them by their apparent magnitude.

    n(M, m) ~ phi(M) S(m) f(m - M)

phi: of all stars; S: the share of stars of apparent magnitude m that the survey has; f: of modulus and extinction
together, which is known. Both unknown functions follow by turns, each given the other, and neither has a form that is
assumed (the maximum-likelihood estimate of Vardi 1985, Ann. Statist. 13, 178, for samples with known biases).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LogDensity = Callable[[np.ndarray], np.ndarray]
"""Of an array of any shape."""
STEP = 0.25
"""Steps in absolute and apparent magnitude, mag."""
TURNS = 300
FEWEST = 5
"""Stars of a bin in apparent magnitude, at least: those beyond are put into the last that has them."""


def log_share(absolute: np.ndarray, apparent: np.ndarray, log_f: LogDensity, at: np.ndarray) -> np.ndarray:
    """ln of the share of stars of absolute magnitudes `at` (K,) that a survey has of which it has these absolute and
    apparent magnitudes (N,), up to a constant; log_f(x): ln f at x = m - M, an array of any shape."""
    edges = np.arange(apparent.min(), apparent.max() + STEP, STEP)
    bins = np.clip(np.digitize(apparent, edges) - 1, 0, len(edges) - 1)
    counts = np.bincount(bins, minlength=len(edges)).astype(float)
    cumulative = np.cumsum(counts)
    low, high = np.searchsorted(cumulative, [FEWEST, cumulative[-1] - FEWEST])
    m = edges + 0.5 * STEP
    # S is even where hardly a star tells
    groups = np.clip(np.arange(len(m)), low, max(high, low))
    n_group = np.bincount(groups, counts, minlength=len(m))
    f = np.exp(log_f(m - absolute[:, None]))
    share = np.ones(len(m))
    for _ in range(TURNS):
        phi = 1 / np.maximum(f @ share, 1e-300)
        expected = np.bincount(groups, phi @ f, minlength=len(m))
        share = (n_group / np.maximum(expected, 1e-300))[groups]
        share = share / share.max()
    return np.log(np.maximum(np.exp(log_f(m - at[:, None])) @ share, 1e-300))


def log_convolved(log_p: LogDensity, scale: float, x: np.ndarray) -> np.ndarray:
    """ln of the density of mu + A at x: mu of log density log_p, A exponential of this mean, mag."""
    nodes, weights = np.polynomial.laguerre.laggauss(12)
    terms = log_p(x[..., None] - scale * nodes) + np.log(weights)
    top = terms.max(-1)
    return np.log(np.exp(terms - top[..., None]).sum(-1)) + top
