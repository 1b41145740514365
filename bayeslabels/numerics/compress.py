"""A star's whole spectrum as a quartic in its labels: K numbers instead of L pixels.

For fixed coefficients theta_l, scatter s_l and weights w_nl = 1 / (sigma_nl^2 + s_l^2),

    ln p(y_n | u) = -1/2 phi(u)' G_n phi(u) + b_n' phi(u) - c_n,
    G_n = sum_l w_nl theta_l theta_l',  b_n = sum_l w_nl y_nl theta_l,
    c_n = 1/2 sum_l [w_nl y_nl^2 - ln w_nl + ln 2 pi],

which is exact, and one matrix product for all stars and pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .linalg import Array, in_float64, outer_pairs, pack, pairs, unpack

PIXELS = 256
"""Pixels a block: the block of 5000 stars and its weights stay near the cache."""

STARS = 256
"""Stars are padded to a multiple of this, so that one compiled program serves many sample sizes."""


class Statistics(NamedTuple):
    """G (N, K, K), b (N, K), c (N,), sum_l w_nl y_nl^2 (N,) and the number of pixels used (N,)."""

    gram: Array
    linear: Array
    constant: Array
    square: Array
    n_pixel: Array

    def log_likelihood(self, phi: Array) -> Array:
        """ln p(y_n | u_n) for features phi (..., N, K)."""
        return self.linear_log_likelihood(phi) - self.constant

    def linear_log_likelihood(self, phi: Array) -> Array:
        quadratic = jnp.einsum("...nk,nkl,...nl->...n", phi, self.gram, phi)
        return jnp.einsum("...nk,nk->...n", phi, self.linear) - 0.5 * quadratic

    def chi2(self, phi: Array) -> Array:
        """sum_l w_nl (y_nl - theta_l . phi_n)^2 for features phi (..., N, K)."""
        return self.square - 2 * self.linear_log_likelihood(phi)


def pixel_blocks(
    value: np.ndarray, error: np.ndarray | None, size: int = PIXELS, number: Any = np.float64
) -> Iterator[tuple[slice, Array, Array]]:
    """Blocks (size, N') of value and error in float64, pixel by pixel, padded with missing numbers to one shape.

    Missing numbers are NaN in both. Without errors the error is 0 where the value is known.
    """
    n_star, n_pixel = value.shape
    for start in range(0, n_pixel, size):
        rows = slice(start, min(start + size, n_pixel))
        width = rows.stop - rows.start
        y = np.empty((size, n_star + -n_star % STARS), number)
        e = np.empty(y.shape, number)
        y[width:] = e[width:] = y[:, n_star:] = e[:, n_star:] = np.nan
        y[:width, :n_star] = value[:, rows].T
        e[:width, :n_star] = 0.0 if error is None else error[:, rows].T
        yield rows, jnp.asarray(y), jnp.asarray(e)


def pad_stars(x: Any, fill: Any = 0.0) -> Array:
    """Rows of a per-star array, padded with `fill` like the rows of `pixel_blocks`."""
    x = jnp.asarray(x)
    rest = jnp.broadcast_to(jnp.asarray(fill, x.dtype), (-len(x) % STARS, *x.shape[1:]))
    return jnp.concatenate([x, rest])


def padded(x: np.ndarray, rows: slice, size: int, fill: float = 0.0) -> Array:
    """Rows of a per-pixel array, padded to `size` rows with `fill`."""
    out = np.full((size, *x.shape[1:]), fill)
    out[: rows.stop - rows.start] = x[rows]
    return jnp.asarray(out)


def known(value: Array, error: Array) -> tuple[Array, Array, Array]:
    """Value with 0, variance with 1 where missing, and the mask of what is known."""
    ok = jnp.isfinite(value) & jnp.isfinite(error)
    return jnp.where(ok, value, 0.0), jnp.where(ok, error, 1.0) ** 2, ok


@functools.partial(jax.jit, static_argnames="constant")
def _compress_block(value, error, theta, scatter, covariance, feature_pairs, constant):
    number = value.dtype
    scatter2, theta_pairs = (scatter**2).astype(number), outer_pairs(theta).astype(number)
    theta, extra = theta.astype(number), jnp.zeros((), number)
    if covariance is not None:
        _, _, multiplicity = pairs(theta.shape[1])
        extra = (pack(covariance) * multiplicity).astype(np.float32) @ feature_pairs.T
    y, variance, ok = known(value, error)
    ok &= jnp.isfinite(scatter2)[:, None]
    total = jnp.where(ok, variance + scatter2[:, None] + extra, 1.0)
    w = ok / total
    wy = w * y
    one = jnp.ones(len(y))
    square = one @ (wy * y)
    logs = one @ jnp.where(ok, jnp.log(2 * jnp.pi * total), 0.0) if constant else jnp.nan * square
    return w.T @ theta_pairs, wy.T @ theta, 0.5 * (square + logs), square, one @ ok


@in_float64
def compress(
    value: Array,
    error: Array | None,
    theta: Array,
    scatter: Array,
    *,
    theta_covariance: Array | None = None,
    feature_pairs: Array | None = None,
    constant: bool = False,
    draft: bool = False,
) -> Statistics:
    """Compress spectra (N, L) with coefficients theta (L, K) and scatter (L,); a pixel of NaN scatter is left out.

    With theta_covariance (L, K, K) and the packed second moments of the features at a first estimate,
    feature_pairs (N, K (K + 1) / 2), the coefficients are integrated out: every pixel's variance is
    sigma_nl^2 + s_l^2 + tr(Cov(theta_l) phi_n phi_n'). That trace, a small correction, is computed in float32.

    constant: compute c_n, which label posteriors do not need (NaN otherwise). draft: all in float32, for a first
    estimate.
    """
    number = np.float32 if draft else np.float64
    k = theta.shape[1]
    theta = np.where(np.isfinite(scatter)[:, None], theta, 0.0)
    if theta_covariance is not None:
        theta_covariance = np.where(np.isfinite(scatter)[:, None, None], theta_covariance, 0.0)
    sums: list[Any] = [0.0] * 5
    f = None if feature_pairs is None else pad_stars(feature_pairs).astype(np.float32)
    size = min(PIXELS, theta.shape[0])
    for rows, y, e in pixel_blocks(value, error, size, number):
        covariance = None if theta_covariance is None or f is None else padded(theta_covariance, rows, size)
        s = padded(scatter, rows, size, np.nan)
        block = _compress_block(y, e, padded(theta, rows, size), s, covariance, f, constant)
        sums = [total + part for total, part in zip(sums, block, strict=True)]
    gram, *rest = (x[: len(value)].astype(np.float64) for x in sums)
    return Statistics(unpack(gram, k), *rest)
