"""Pareto-smoothed importance weights (Vehtari+24, JMLR 25, 72), for all stars at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from .compiling import jit
from .linalg import Array


@jit
def smooth_weights(log_ratio: Array) -> tuple[Array, Array]:
    """Normalised, smoothed log weights (S,) and k-hat from log importance ratios (S,) of one star.

    The largest min(S / 5, 3 sqrt(S)) ratios, rounded down, are replaced by the expected order statistics of a
    generalised Pareto distribution fitted to them (Zhang & Stephens 2009), with the prior of PSIS on k.
    """
    s = len(log_ratio)
    tail = max(1, int(min(0.2 * s, 3 * np.sqrt(s))))
    log_ratio = log_ratio - log_ratio.max()
    _, where = jax.lax.top_k(log_ratio.astype(np.float32), tail + 1)  # in float64 XLA sorts everything
    where = where[jnp.argsort(-log_ratio[where])]
    largest = log_ratio[where]
    cutoff = largest[-1]
    excess = jnp.exp(largest[:tail][::-1]) - jnp.exp(cutoff)
    k, sigma = _fit_pareto(jnp.maximum(excess, 1e-300))
    p = (np.arange(tail) + 0.5) / tail
    quantile = sigma * jnp.expm1(-k * np.log1p(-p)) / k
    smooth = jnp.minimum(jnp.log(quantile + jnp.exp(cutoff)), 0.0)[::-1]
    weights = log_ratio.at[where[:tail]].set(jnp.where(jnp.isfinite(k), smooth, largest[:tail]))
    return weights - jax.scipy.special.logsumexp(weights), k


def _fit_pareto(x: Array) -> tuple[Array, Array]:
    """Shape k and scale sigma of a generalised Pareto distribution from sorted excesses x (T,)."""
    n = x.shape[0]
    m = 30 + int(np.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    b = (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quartile) + 1 / x[-1]
    k = jnp.log1p(-b[:, None] * x).mean(1)
    profile = n * (jnp.log(-b / k) - k - 1)
    weight = jax.nn.softmax(profile)
    b_mean = (b * weight).sum()
    k_mean = jnp.log1p(-b_mean * x).mean()
    return (n * k_mean + 5) / (n + 10), -k_mean / b_mean
