"""Pareto-smoothed importance weights (Vehtari+24, JMLR 25, 72), for all stars at once."""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp, softmax


def smooth_weights(log_ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalised, smoothed log weights (..., S) and k-hat (...) from log importance ratios (..., S) of stars.

    The largest min(S / 5, 3 sqrt(S)) ratios, rounded down, are replaced by the expected order statistics of a
    generalised Pareto distribution fitted to them (Zhang & Stephens 2009), with the prior of PSIS on k.
    """
    s = log_ratio.shape[-1]
    tail = max(1, int(min(0.2 * s, 3 * np.sqrt(s))))
    log_ratio = log_ratio - log_ratio.max(-1, keepdims=True)
    where = np.argpartition(log_ratio, s - tail - 1, axis=-1)[..., s - tail - 1 :]
    largest = np.take_along_axis(log_ratio, where, -1)
    order = np.argsort(largest, axis=-1)
    where, largest = (np.take_along_axis(x, order, -1) for x in (where, largest))
    cutoff, largest = np.split(largest, [1], axis=-1)
    excess = np.exp(largest) - np.exp(cutoff)
    k, sigma = (x[..., None] for x in _fit_pareto(np.maximum(excess, 1e-300)))
    p = (np.arange(tail) + 0.5) / tail
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quantile = sigma * np.expm1(-k * np.log1p(-p)) / k
        smooth = np.minimum(np.log(quantile + np.exp(cutoff)), 0.0)
    weights = log_ratio.copy()
    np.put_along_axis(weights, where[..., 1:], np.where(np.isfinite(k), smooth, largest), -1)
    return weights - logsumexp(weights, axis=-1, keepdims=True), k[..., 0]


def _fit_pareto(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shape k and scale sigma (...) of a generalised Pareto distribution from sorted excesses x (..., T)."""
    n = x.shape[-1]
    m = 30 + int(np.sqrt(n))
    quartile = x[..., [int(n / 4 + 0.5) - 1]]
    b = (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quartile) + 1 / x[..., -1:]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        k = np.log1p(-b[..., None] * x[..., None, :]).mean(-1)
        profile = n * (np.log(-b / k) - k - 1)
        weight = softmax(profile, axis=-1)
        b_mean = (b * weight).sum(-1)
        k_mean = np.log1p(-b_mean[..., None] * x).mean(-1)
        return (n * k_mean + 5) / (n + 10), -k_mean / b_mean
