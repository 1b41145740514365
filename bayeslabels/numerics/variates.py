"""Draws of the conditional distributions of which Gibbs sweeps are made."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from .linalg import Array

BEYOND = 0.5
"""Overrelaxation of Gaussian blocks: 0 draws them afresh, near 1 they swing about their means."""


def gaussian(precision: Array, information: Array, z: Array, old: Array | None = None) -> Array:
    """precision^-1 information + noise of covariance precision^-1 made from z, (..., K).

    With the present value `old`, the draw lies on the other side of the mean (Adler 81): the conditional density stays,
    and blocks that hold each other back, as coefficients and latents do, get past each other sooner.
    """
    scale = 1 / jnp.sqrt(jnp.diagonal(precision, axis1=-2, axis2=-1))
    factor = jnp.linalg.cholesky(precision * scale[..., :, None] * scale[..., None, :])
    half = solve_triangular(factor, (scale * information)[..., None], lower=True)[..., 0]
    if old is None:
        half = half + z
    else:
        half = half + BEYOND * (half - jnp.einsum("...kj,...k->...j", factor, old / scale)) + np.sqrt(1 - BEYOND**2) * z
    return scale * solve_triangular(jnp.swapaxes(factor, -1, -2), half[..., None], lower=False)[..., 0]


def inverse_wishart(key: Array, freedom: int, matrix: Array) -> Array:
    """Sigma of density |Sigma|^-(freedom + k + 1) / 2 exp(-tr(matrix Sigma^-1) / 2): a Wishart draw, inverted."""
    k = matrix.shape[0]
    z = jax.random.normal(key, (k, freedom))
    scale = jnp.sqrt(jnp.diagonal(matrix))
    factor = jnp.linalg.cholesky(matrix / (scale[:, None] * scale))
    half = solve_triangular(jnp.linalg.cholesky(z @ z.T), factor.T, lower=True) * scale
    return half.T @ half


def student(key: Array, shape: tuple[int, ...], freedom: int, m: int) -> Array:
    """Multivariate t (*shape, m) of an even number of degrees of freedom: chi^2 from logarithms of uniforms."""
    k1, k2 = jax.random.split(key)
    chi2 = -2 * jnp.log(1 - jax.random.uniform(k1, (freedom // 2, *shape))).sum(0)
    return jax.random.normal(k2, (*shape, m)) / jnp.sqrt(chi2 / freedom)[..., None]
