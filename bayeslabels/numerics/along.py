"""Functions of the distance modulus along the lines of sight of stars: tables in even steps, with a row per star.

Rows are (..., K), with the axes of the stars first. They are looked up at mu, which has the axes of the stars last and
may have others before. Beyond the ends of its table a spline is a straight line, and a line stays constant.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from .linalg import Array, module_of


@functools.cache
def _solver(n: int) -> np.ndarray:
    """From n values at the knots to the n + 2 coefficients (n + 2, n) of the cubic B-spline through them, whose second
    derivative is 0 at both ends."""
    a = np.zeros((n + 2, n + 2))
    for i in range(n):
        a[i + 1, i : i + 3] = 1 / 6, 4 / 6, 1 / 6
    a[0, :3] = a[-1, -3:] = 1, -2, 1
    return np.linalg.inv(a)[:, 1:-1]


def coefficients(values: Array) -> Array:
    """Coefficients (..., K + 2) of `spline` from values (..., K) at the knots."""
    return values @ module_of(values).asarray(_solver(values.shape[-1]).T)


def spline(rows: Array, first: Array, step: Array, mu: Array) -> tuple[Array, Array, Array]:
    """The cubic spline of coefficients (..., K + 2), knots at first + step k: value, slope and second derivative."""
    t, i, f = _place(rows.shape[-1] - 2, first, step, mu)
    a, b, c, d = _taps(rows, i, 4)
    g = 1 - f
    slope = (-0.5 * g**2 * a + (1.5 * f - 2) * f * b + (0.5 + f - 1.5 * f**2) * c + 0.5 * f**2 * d) / step
    value = (g**3 * a + (4 - 6 * f**2 + 3 * f**3) * b + (1 + 3 * f * (1 + f - f**2)) * c + f**3 * d) / 6
    return value + (t - i - f) * step * slope, slope, (g * a + (3 * f - 2) * b + (1 - 3 * f) * c + f * d) / step**2


def line(rows: Array, first: Array, step: Array, mu: Array) -> Array:
    """Values (..., K) at first + step k, straight between."""
    _, i, f = _place(rows.shape[-1], first, step, mu)
    low, high = _taps(rows, i, 2)
    return low + f * (high - low)


def _place(n: int, first: Array, step: Array, mu: Array) -> tuple[Array, Array, Array]:
    """mu in steps from the first of n knots, the knot below it, and the share of the step beyond that."""
    t = (mu - first) / step
    inside = jnp.clip(t, 0, n - 1)
    i = jnp.minimum(jnp.floor(inside), n - 2).astype(jnp.int32)
    return t, i, inside - i


def _taps(rows: Array, i: Array, n: int) -> list[Array]:
    """Columns i, i + 1, ... of the rows."""
    across = jnp.moveaxis(jnp.asarray(rows), -1, 0)
    flat = i.reshape(-1, *i.shape[i.ndim - across.ndim + 1 :])
    return [jnp.take_along_axis(across, flat + j, 0).reshape(i.shape) for j in range(n)]


def resampled(knots: np.ndarray, n: int) -> tuple[np.ndarray, float, float]:
    """Matrix (K, n) from values at the knots (K,) to n even steps, straight between, and the first and the step."""
    even = np.linspace(knots[0], knots[-1], n)
    return np.stack([np.interp(even, knots, x) for x in np.eye(len(knots))]), float(even[0]), float(even[1] - even[0])
