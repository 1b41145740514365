"""A star's whole spectrum as a quartic in its labels: K numbers instead of L pixels.

For fixed coefficients theta_l, scatter s_l and weights w_nl = 1 / (sigma_nl^2 + s_l^2),

    ln p(y_n | u) = -1/2 phi(u)' G_n phi(u) + b_n' phi(u) - c_n,
    G_n = sum_l w_nl theta_l theta_l',  b_n = sum_l w_nl y_nl theta_l,
    c_n = 1/2 sum_l [w_nl y_nl^2 - ln w_nl + ln 2 pi],

which is exact, and one matrix product for all stars and pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .compiling import jit
from .linalg import Array, in_float64, outer_pairs, pack, pairs, unpack

PIXELS = 64
"""Pixels a block in training: few enough that the memory of one, with 5000 stars, is used again for the next."""

TILE = 1024
"""Pixels, at most, that `compress` takes at a time: the numbers of STARS stars stay in the cache."""

STARS = 256
"""Stars are padded to a multiple of this, so that one compiled program serves many sample sizes."""


def pixels_at_once(n_star: int) -> int:
    """Pixels in a block of the training step: blocks of so many stars stay near the cache, and calls few."""
    return int(2 ** np.clip(np.round(np.log2(300_000 / n_star)), np.log2(PIXELS), 10))


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
        quadratic = ((phi[..., None, :] @ self.gram)[..., 0, :] * phi).sum(-1)
        return (phi * self.linear).sum(-1) - 0.5 * quadratic

    def chi2(self, phi: Array) -> Array:
        """sum_l w_nl (y_nl - theta_l . phi_n)^2 for features phi (..., N, K)."""
        return self.square - 2 * self.linear_log_likelihood(phi)


_transposed = jit(lambda *arrays: [x.T for x in arrays])  # several times faster than NumPy's


def pixel_blocks(
    value: np.ndarray, error: np.ndarray | None, size: int = PIXELS
) -> Iterator[tuple[slice, Array, Array]]:
    """Blocks (size, N') of value and error in float64, pixel by pixel, padded with missing numbers to one shape.

    Missing numbers are NaN in both. Without errors the error is 0 where the value is known.
    """
    n_star, n_pixel = value.shape
    for start in range(0, n_pixel, size):
        rows = slice(start, min(start + size, n_pixel))
        width = rows.stop - rows.start
        y = np.empty((n_star + -n_star % STARS, size))
        e = np.empty(y.shape)
        y[:, width:] = e[:, width:] = y[n_star:] = e[n_star:] = np.nan
        y[:n_star, :width] = value[:, rows]
        e[:n_star, :width] = 0.0 if error is None else error[:, rows]
        yield rows, *_transposed(y, e)


def pad_stars(x: np.ndarray) -> np.ndarray:
    """Rows of a per-star array, padded with zeros like the rows of `pixel_blocks`."""
    return _filled(x, (len(x) + -len(x) % STARS, *x.shape[1:]), 0.0)


def by_blocks(function: Callable[..., Any], *per_star: Any) -> Any:
    """A compiled function of arrays with a row per star, a block of stars at a time, as NumPy has them: one program,
    whatever their number. The last block is filled up with copies of its last star.

    On a GPU, which wants many stars at a time, blocks are as large as the next power of two.
    """
    leaves, structure = jax.tree.flatten(per_star)
    leaves = [np.asarray(x) for x in leaves]
    n = len(leaves[0])
    size = STARS if jax.default_backend() == "cpu" else max(STARS, 1 << (n - 1).bit_length())
    found = []
    for first in range(0, n, size):
        block = [x[first : first + size] for x in leaves]
        if n - first < size:
            block = [np.concatenate([x, np.repeat(x[-1:], size - len(x), 0)]) for x in block]
        found.append(jax.tree.map(np.asarray, function(*jax.tree.unflatten(structure, block))))
    return jax.tree.map(lambda *x: np.concatenate(x)[:n], *found)


def padded(rows: slice, size: int, *per_pixel: np.ndarray, fill: float = 0.0) -> list[np.ndarray]:
    """Rows of per-pixel arrays, padded to `size` rows with `fill`."""
    out = [np.full((size, *x.shape[1:]), fill) for x in per_pixel]
    for filled, x in zip(out, per_pixel, strict=True):
        filled[: rows.stop - rows.start] = x[rows]
    return out


def known(value: Array, error: Array) -> tuple[Array, Array, Array]:
    """Value with 0, variance with 1 where missing, and the mask of what is known."""
    ok = jnp.isfinite(value) & jnp.isfinite(error)
    return jnp.where(ok, value, 0.0), jnp.where(ok, error, 1.0) ** 2, ok


@functools.partial(jit, static_argnames="constant")
def _add_tile(
    sums: tuple[Array, ...], y: Array, e: Array | None, theta: Array, theta_pairs: Array, scatter2: Array,
    trace: Array | None, feature_pairs: Array | None, unit: Array, constant: bool,
) -> tuple[Array, ...]:  # fmt: skip
    """`sums` with the pixels of a tile (STARS, width) added; y and e in the caller's unit, all else in `unit`."""
    y, e = (jnp.asarray(x, float) * unit for x in (y, jnp.zeros(()) if e is None else e))
    value, variance, ok = known(y, e)
    ok &= jnp.isfinite(scatter2)
    if trace is not None:
        variance = variance + feature_pairs @ trace
    total = jnp.where(ok, variance + scatter2, 1.0)
    w = jax.lax.optimization_barrier(ok / total)  # one division, not one per sum
    wy = jax.lax.optimization_barrier(w * value)
    one = jnp.ones(y.shape[1])
    square = (wy * value) @ one
    logs = jnp.nan * square
    if constant:
        logs = jnp.where(ok, jnp.log(2 * jnp.pi * total) - 2 * jnp.log(unit), 0.0) @ one
    parts = (w @ theta_pairs, wy @ theta, 0.5 * (square + logs), square, ok @ one)
    return tuple(total + part for total, part in zip(sums, parts, strict=True))


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
) -> Statistics:
    """Compress spectra (N, L) with coefficients theta (L, K) and scatter (L,); a pixel of NaN scatter is left out.

    With theta_covariance (L, K, K) and the packed second moments of the features at a first estimate,
    feature_pairs (N, K (K + 1) / 2), the coefficients are integrated out: every pixel's variance is
    sigma_nl^2 + s_l^2 + tr(Cov(theta_l) phi_n phi_n').

    constant: compute c_n, which label posteriors do not need (NaN otherwise). All sums are in float64: in float32 the
    order of pixels, and the unit of the flux, would change errors by 1e-7 of themselves.
    """
    n_star, n_pixel = value.shape
    k = theta.shape[1]
    use = np.isfinite(scatter)
    unit = power_of_two(np.abs(theta[use]).max(initial=0.0))
    theta = np.where(use[:, None], theta, 0.0) * unit
    scatter2 = (np.asarray(scatter) * unit) ** 2
    size = k * (k + 1) // 2
    f = trace = None
    if theta_covariance is not None and feature_pairs is not None:
        f = np.asarray(feature_pairs)
        covariance = np.where(use[:, None], pack(np.asarray(theta_covariance)), 0.0)
        trace = (covariance * (unit**2 * pairs(k)[2])).T
    width = -(-n_pixel // -(-n_pixel // TILE))
    blank = tuple(np.zeros((STARS, *tail)) for tail in ((size,), (k,), (), (), ()))
    sums = [blank] * -(-n_star // STARS)
    for start in range(0, n_pixel, width):
        columns = slice(start, start + width)
        filled = _filled(theta[columns], (width, k), 0.0)
        s2 = _filled(scatter2[columns], (width,), np.nan)
        c = None if trace is None else _filled(trace[:, columns], (size, width), 0.0)
        s2, t, products, c = jax.device_put((s2, filled, outer_pairs(filled), c))
        for i in range(len(sums)):
            rows = slice(i * STARS, (i + 1) * STARS)
            y = _filled(value[rows, columns], (STARS, width), np.nan)
            e = None if error is None else _filled(error[rows, columns], (STARS, width), np.nan)
            own = None if f is None else _filled(f[rows], (STARS, size), 0.0)
            sums[i] = _add_tile(sums[i], y, e, t, products, s2, c, own, unit, constant)
    gram, *rest = (np.concatenate(x)[:n_star] for x in zip(*sums, strict=True))
    return Statistics(unpack(gram, k), *rest)


def power_of_two(scale: float) -> float:
    """A power of two that brings numbers of this size near one, without rounding; spectra may be in W / m^2 / nm."""
    return float(2.0 ** -np.round(np.log2(scale))) if scale > 0 else 1.0


def _filled(x: np.ndarray, shape: tuple[int, ...], fill: float) -> np.ndarray:
    """x in the corner of an array of this shape: programs compiled for full tiles serve the last one, too."""
    if x.shape == shape:
        return x
    out = np.full(shape, fill, x.dtype)
    out[tuple(map(slice, x.shape))] = x
    return out
