"""A positive quantity of lognormal spread, measured with Gaussian noise: the likelihood of a parallax of any sign.

    p(y | eta, s, sigma) = integral N(y | exp(eta + s z), sigma^2) N(z | 0, 1) dz

by Gauss-Hermite quadrature about the integrand's own mode and width: a fixed rule misses the narrow peak of a precise
parallax. y: any sign; sigma: its error; eta: the mean of ln(true); s: the sd of ln(true), 0 for none.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .compiling import jit
from .linalg import Array, in_float64
from .sparse import Optimum, minimise

NODES = 15
"""Nodes of the quadrature: the likelihood is right to 1e-9 for s = 0.1, 1e-5 for s = 0.3 and 1e-2 for s = 1."""

_T, _W = np.polynomial.hermite_e.hermegauss(NODES)
_LOG_W = np.log(_W) + 0.5 * _T**2


class Derivatives(NamedTuple):
    """ln p(y - zero | eta, s, sigma): value, first derivatives in eta and zero, minus the second ones.

    fisher: Fisher's approximation of eta_eta, never negative.
    """

    value: Array
    eta: Array
    zero: Array
    eta_eta: Array
    eta_zero: Array
    zero_zero: Array
    fisher: Array


@jit
def log_likelihood(y: Array, sigma: Array, eta: Array, s: Array) -> Array:
    """ln p(y | eta, s, sigma), broadcast; differentiable in every argument."""
    terms, _ = _integrand(y, sigma, eta, s)
    return jax.scipy.special.logsumexp(terms, axis=-1)


@jit
def derivatives(y: Array, sigma: Array, eta: Array, s: Array) -> Derivatives:
    """From the moments of the integrand over the nodes; y is the measured number less the zero point."""
    terms, true = _integrand(y, sigma, eta, s)
    value = jax.scipy.special.logsumexp(terms, axis=-1)
    weight = jnp.exp(terms - value[..., None])
    variance = jnp.asarray(sigma)[..., None] ** 2
    pull = (jnp.asarray(y)[..., None] - true) / variance

    def mean(at_nodes: Array) -> Array:
        return (weight * at_nodes).sum(-1)

    of_eta, of_zero = mean(true * pull), mean(pull)
    from_eta, from_zero = true * pull - of_eta[..., None], pull - of_zero[..., None]
    centre2 = jnp.exp(2 * jnp.minimum(eta, LARGEST))
    return Derivatives(
        value,
        of_eta,
        of_zero,
        mean(true * (true / variance - pull) - from_eta**2),
        mean(true / variance - from_eta * from_zero),
        mean(1 / variance - from_zero**2),
        centre2 / (variance[..., 0] + s**2 * centre2),
    )


LARGEST = 300.0
"""exp of more is not computed: no parallax is that large, and squares must not overflow."""


def _integrand(y: Array, sigma: Array, eta: Array, s: Array) -> tuple[Array, Array]:
    """ln of the integrand times the rule's weights, and exp(eta + s z), at the nodes, (..., NODES)."""
    y, sigma, eta, s = jnp.broadcast_arrays(*(jnp.asarray(a, float) for a in (y, sigma, eta, s)))
    centre, width = jax.lax.stop_gradient(_mode(*(jax.lax.stop_gradient(a) for a in (y, sigma, eta, s))))
    node, log_w = (jnp.asarray(a, width.dtype) for a in (_T, _LOG_W))
    z = centre[..., None] + width[..., None] * node
    true = jnp.exp(jnp.minimum(eta[..., None] + s[..., None] * z, LARGEST))
    misfit = (y[..., None] - true) / sigma[..., None]
    log_norm = jnp.log(width) - jnp.log(sigma) - np.log(2 * np.pi)
    return log_norm[..., None] + log_w - 0.5 * misfit**2 - 0.5 * z**2, true


def _mode(y: Array, sigma: Array, eta: Array, s: Array) -> tuple[Array, Array]:
    """Mode and width in z of N(y | exp(eta + s z), sigma^2) N(z | 0, 1), by Gauss-Newton from the two data combined."""
    precision = (s * y / sigma) ** 2
    from_data = (jnp.log(jnp.maximum(y, 1e-300)) - eta) / jnp.maximum(s, 1e-12)
    z = jnp.where((y > 3 * sigma) & (s > 0), from_data * precision / (1 + precision), 0.0)
    longest = 1.0 / jnp.maximum(s, 1e-3)
    for _ in range(12):
        true = jnp.exp(jnp.minimum(eta + s * z, LARGEST))
        slope = s * true / sigma
        aim = slope * ((y - true) / sigma + slope * z) / (1 + slope**2)
        z = z + jnp.clip(aim - z, -longest, longest)
    true = jnp.exp(jnp.minimum(eta + s * z, LARGEST))
    fisher = 1 + (s * true / sigma) ** 2
    exact = fisher - s**2 * true * (y - true) / sigma**2
    return z, 1 / jnp.sqrt(jnp.maximum(exact, 0.5 * fisher))


@in_float64
def fit_log_linear(
    x: Array,
    y: np.ndarray,
    sigma: np.ndarray,
    *,
    l1: np.ndarray,
    ridge: np.ndarray,
    s: Array = 0.0,
    start: np.ndarray | None = None,
    tolerance: float = 1e-5,
) -> Optimum:
    """Optimum of sum_n -ln p(y_n | x_n . theta, s_n, sigma_n) + l1 |theta| + 1/2 ridge theta^2, from a cold start.

    x (N, D), its first column the constant, the others best centred; y, sigma (N,); s a number or (N,); l1, ridge (D,).
    """
    if start is None:
        start = cold_start(x, y, sigma, l1, ridge)
    return minimise(x, functools.partial(_minus_log_likelihood, y, sigma, s), l1, ridge, start, tolerance=tolerance)


def cold_start(x: Array, y: np.ndarray, sigma: np.ndarray, l1: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Coefficients near the good optimum, whatever the signs and the S/N of y, without a first look at the best stars.

    The likelihood has a bad optimum, where exp(eta) underflows for all stars. The estimating function
    sum_n w_n (exp(eta_n) - y_n eta_n) has the same expected root and is convex, so that it has no other: a few Newton
    steps on it, from the mean parallax, get near enough.
    """
    weight = 1 / sigma**2
    mean = max((weight * y).sum() / weight.sum(), weight.sum() ** -0.5)
    weight = weight * mean

    def convex(eta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        true = np.exp(np.minimum(eta, LARGEST))
        return weight * (true - y * eta), weight * (true - y), weight * true

    start = np.zeros(x.shape[1])
    start[0] = np.log(mean)
    return minimise(x, convex, l1, ridge, start, tolerance=10.0, max_iterations=20).theta


def _minus_log_likelihood(y: Array, sigma: Array, s: Array, eta: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    d = derivatives(y, sigma, eta, s)
    return -np.asarray(d.value), -np.asarray(d.eta), np.maximum(d.eta_eta, 0.1 * d.fisher)
