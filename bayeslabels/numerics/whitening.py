"""Noise of several numbers of a star, independent or with a covariance, and columns in units of it.

    y = mean + N(0, C),   W C W' = 1,   ln N(y | mean, C) = -(|W (y - mean)|^2 + ln det 2 pi C) / 2

Numbers that were not measured drop out: their rows of W are 0, and their rows and columns of C do not count.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .linalg import Array


class Independent(NamedTuple):
    """root: 1 / sd (..., B); log_det: ln det 2 pi C (...)."""

    root: Array
    log_det: Array

    def white(self, columns: Array) -> Array:
        """W x of columns (..., K, B)."""
        return columns * self.root[..., None, :]

    def white_rows(self, rows: Array) -> Array:
        """W x of S columns that stand side by side, (B, S), of one star: sums over bands then run along S."""
        return rows * self.root[:, None]

    def precision_times(self, columns: Array) -> Array:
        """C^-1 x of columns (..., K, B)."""
        return columns * (self.root**2)[..., None, :]

    def products(self, x: Array, y: Array) -> Array:
        """x_s' C^-1 y_s (..., S) of x and y (S, B), the same for all stars: one product of matrices."""
        return self.root**2 @ (x * y).T

    def scaled(self, unit: Array) -> Independent:
        """The same where columns are divided by a unit (..., B) of any sign."""
        return self._replace(root=self.root * unit)

    def coloured(self, white: Array) -> Array:
        """Noise (..., B) from independent numbers of unit variance (..., B); 0 where nothing was measured."""
        return white * jnp.where(self.root > 0, 1 / jnp.where(self.root > 0, self.root, 1.0), 0.0)


class Correlated(NamedTuple):
    """root: W (..., B, B), lower triangular; log_det: ln det 2 pi C (...)."""

    root: Array
    log_det: Array

    def white(self, columns: Array) -> Array:
        return columns @ jnp.swapaxes(self.root, -1, -2)

    def white_rows(self, rows: Array) -> Array:
        return self.root @ rows

    def precision_times(self, columns: Array) -> Array:
        return self.white(columns) @ self.root

    def products(self, x: Array, y: Array) -> Array:
        precision = jnp.swapaxes(self.root, -1, -2) @ self.root
        i, j = np.triu_indices(x.shape[-1])
        half = np.where(i == j, 0.5, 1.0)
        return precision[..., i, j] @ (half * (x[:, i] * y[:, j] + x[:, j] * y[:, i])).T

    def scaled(self, unit: Array) -> Correlated:
        return self._replace(root=self.root * unit[..., None, :])

    def coloured(self, white: Array) -> Array:
        seen = jnp.diagonal(self.root, axis1=-2, axis2=-1) > 0
        both = seen[..., :, None] & seen[..., None, :]
        whole = jnp.where(both, self.root, jnp.eye(self.root.shape[-1], dtype=self.root.dtype))
        out = jax.scipy.linalg.solve_triangular(whole, white[..., None], lower=True)[..., 0]
        return jnp.where(seen, out, 0.0)


Noise: TypeAlias = Independent | Correlated


def noise_of(stated: Array, extra: Array, seen: Array) -> Noise:
    """Noise of numbers whose stated variances (..., B) or covariances (..., B, B) are raised by variances `extra` (...,
    B) of their own; seen (..., B): 1 of what was measured, else 0."""
    if stated.ndim == seen.ndim:
        variance = stated + extra
        return Independent(seen / jnp.sqrt(variance), (seen * jnp.log(2 * np.pi * variance)).sum(-1))
    here = seen > 0
    eye = jnp.eye(stated.shape[-1], dtype=stated.dtype)
    both = here[..., :, None] & here[..., None, :]
    root = whitening(jnp.where(both, stated + (seen * extra)[..., None] * eye, eye))
    diagonal = jnp.diagonal(root, axis1=-2, axis2=-1)
    log_det = (seen * (np.log(2 * np.pi) - 2 * jnp.log(diagonal))).sum(-1)
    return Correlated(jnp.where(both, root, 0.0), log_det)


@jax.custom_jvp
def whitening(c: Array) -> Array:
    """W (..., B, B), lower triangular, of positive definite C (..., B, B): W C W' = 1; NaN of others.

    Its slope is a matter of products alone, dW = -low(W dC W') W, low: the lower triangle with half of the diagonal. So
    a program has one batched factorisation only: two wait for each other for ever (`linalg.after`).
    """
    scale = 1 / jnp.sqrt(jnp.diagonal(c, axis1=-2, axis2=-1))
    factor = jnp.linalg.cholesky(c * scale[..., :, None] * scale[..., None, :])
    eye = jnp.broadcast_to(jnp.eye(c.shape[-1], dtype=c.dtype), c.shape)
    return jax.scipy.linalg.solve_triangular(factor, eye, lower=True) * scale[..., None, :]


@whitening.defjvp
def _slope_of_whitening(primals: Any, tangents: Any) -> Any:
    (c,), (change,) = primals, tangents
    w = whitening(c)
    low = np.tril(np.ones(c.shape[-2:])) - 0.5 * np.eye(c.shape[-1])
    return w, -((w @ change @ jnp.swapaxes(w, -1, -2)) * low.astype(c.dtype)) @ w
