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

from .linalg import Array

STEP = np.sqrt(3.0)
"""h, which matches the fourth moment of a Gaussian."""
LN_PRECISIONS = np.arange(-8, 3) * 0.6
"""Nodes of `scale_mixture`: a Student-t is cut off at eleven times its scale, and may become a Gaussian."""


def propagate(function: Callable[[Array], Array], mean: Array, root: Array) -> tuple[Array, Array]:
    """Mean (N, M) and covariance (N, M, M) of function(x), x ~ N(mean, F F'), mean (N, D), root F (N, D, R)."""
    centre = function(mean)
    if not root.shape[-1]:
        return centre, jnp.zeros((*centre.shape, centre.shape[-1]), centre.dtype)
    steps = STEP * jnp.swapaxes(root, -1, -2)
    up, down = function(mean[:, None] + steps), function(mean[:, None] - steps)
    first = (up - down) / (2 * STEP)
    second = (up + down - 2 * centre[:, None]) / STEP**2
    spread = jnp.einsum("nrm,nrk->nmk", first, first)
    return centre + 0.5 * second.sum(1), spread + 0.25 * (STEP**2 - 1) * jnp.einsum("nrm,nrk->nmk", second, second)


def log_normal(offset: Array, covariance: Array, observed: Array) -> Array:
    """ln N(offset; 0, covariance) (N,) of the observed entries of offset (N, M); unrolled over the small M."""
    factor: list[list[Array]] = []
    rest: list[Array] = []
    total = jnp.zeros(())
    for i in range(offset.shape[-1]):
        row: list[Array] = []
        factor.append(row)
        for j in range(i + 1):
            both = observed[..., i] & observed[..., j]
            entry = jnp.where(both, covariance[..., i, j], float(i == j))
            for k in range(j):
                entry = entry - row[k] * factor[j][k]
            row.append(entry / factor[j][j] if j < i else jnp.sqrt(entry))
        z = jnp.where(observed[..., i], offset[..., i], 0.0)
        for k in range(i):
            z = z - row[k] * rest[k]
        rest.append(z / row[i])
        term = 0.5 * rest[i] ** 2 + jnp.log(row[i]) + 0.5 * np.log(2 * np.pi)
        total = total - jnp.where(observed[..., i], term, 0.0)
    return total


def scale_mixture(freedom: Array) -> tuple[Array, np.ndarray]:
    """ln weights (..., Q) and precisions (Q,) of the Gaussians that make a Student-t of these degrees of freedom.

    t_nu(x; s) = int Gamma(l; nu / 2, nu / 2) N(x; 0, s^2 / l) dl, on a grid of ln l. Unlike the t itself, the mixture
    can be convolved with Gaussian noise.
    """
    half = freedom[..., None] / 2
    logits = half * (LN_PRECISIONS - np.exp(LN_PRECISIONS))
    return jax.nn.log_softmax(logits, -1), np.exp(LN_PRECISIONS)
