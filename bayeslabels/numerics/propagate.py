"""What a function makes of uncertain arguments, and densities of a few correlated numbers with gaps.

Moments by second-order differences (Norgaard, Poulsen & Ravn 2000, eq. 39 and 46): for x = mean + F z, z ~ N(0, I),

    a_r = [g(mean + h F_r) - g(mean - h F_r)] / (2 h),   b_r = [g(mean + h F_r) + g(mean - h F_r) - 2 g(mean)] / h^2
    E g = g(mean) + 1/2 sum_r b_r,   Cov g = sum_r a_r a_r' + (h^2 - 1) / 4 sum_r b_r b_r',   h^2 = 3

exact for linear and for separable quadratic functions, the covariance never negative; no point farther than 1.7 sd.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from .linalg import Array

STEP = np.sqrt(3.0)
"""h, which matches the fourth moment of a Gaussian."""
LN_PRECISIONS = np.arange(-8, 3) * 0.6
"""Nodes of `scale_mixture`: a Student-t is cut off at eleven times its scale, and may become a Gaussian."""


def propagate(function: Callable[[Array], Array], mean: Array, root: Array) -> tuple[Array, Array]:
    """Mean (N, M) and covariance (N, M, M) of function(x), x ~ N(mean, F F'), mean (N, D), root F (N, D, R)."""
    if not root.shape[-1]:
        centre = function(mean)
        return centre, jnp.zeros((*centre.shape, centre.shape[-1]), centre.dtype)
    centre, shift, covariance = propagated(function, mean, root)
    return centre + shift, covariance


def propagated(function: Callable[[Array], Array], mean: Array, root: Array) -> tuple[Array, Array, Array]:
    """g(mean) and E g - g(mean), (N, M) each, and Cov g (N, M, M); root with at least one column."""
    steps = STEP * jnp.swapaxes(root, -1, -2)
    points = function(jnp.concatenate([mean[:, None], mean[:, None] + steps, mean[:, None] - steps], 1))
    centre, up, down = points[:, 0], points[:, 1 : steps.shape[1] + 1], points[:, steps.shape[1] + 1 :]
    first = (up - down) / (2 * STEP)
    second = (up + down - 2 * centre[:, None]) / STEP**2
    covariance = jnp.einsum("nrm,nrk->nmk", first, first)
    covariance = covariance + 0.25 * (STEP**2 - 1) * jnp.einsum("nrm,nrk->nmk", second, second)
    return centre, 0.5 * second.sum(1), covariance


def log_normal(offset: Array, covariance: Array, observed: Array) -> Array:
    """ln N(offset; 0, covariance) (N,) of the observed entries of offset (N, M); unrolled over the small M."""
    factor: list[list[Array]] = []  # L of covariance = L D L', whose diagonal is 1
    pivots: list[Array] = []
    rest: list[Array] = []
    square, volume = jnp.zeros(()), jnp.ones(())
    for i in range(offset.shape[-1]):
        scaled: list[Array] = []  # row i of L D
        row: list[Array] = []
        z = jnp.where(observed[..., i], offset[..., i], 0.0)
        pivot = jnp.where(observed[..., i], covariance[..., i, i], 1 / (2 * np.pi))
        for j in range(i):
            entry = jnp.where(observed[..., i] & observed[..., j], covariance[..., i, j], 0.0)
            for k in range(j):
                entry = entry - scaled[k] * factor[j][k]
            scaled.append(entry)
            row.append(entry / pivots[j])
            pivot = pivot - entry * row[j]
            z = z - row[j] * rest[j]
        factor.append(row)
        pivots.append(pivot)
        rest.append(z)
        square, volume = square + z**2 / pivot, volume * (2 * np.pi * pivot)
    return -0.5 * (square + jnp.log(volume))


def scale_mixture(freedom: Array) -> tuple[Array, np.ndarray]:
    """ln weights (..., Q) and precisions (Q,) of the Gaussians that make a Student-t of these degrees of freedom.

    t_nu(x; s) = int Gamma(l; nu / 2, nu / 2) N(x; 0, s^2 / l) dl, on a grid of ln l. Unlike the t itself, the mixture
    can be convolved with Gaussian noise.
    """
    half = freedom[..., None] / 2
    logits = half * (LN_PRECISIONS - np.exp(LN_PRECISIONS))
    total = jax.nn.logsumexp if isinstance(logits, jax.Array) else logsumexp
    return logits - total(logits, -1, keepdims=True), np.exp(LN_PRECISIONS)
