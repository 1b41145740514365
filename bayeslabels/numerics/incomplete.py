"""The Gaussian population of incomplete vectors, and what it says of their missing numbers.

    x_n ~ N(mean, W W' + diag(noise)),   W (D, Q)

by expectation-maximisation on what is observed of each x_n (factor analysis; Ghahramani & Hinton 1996). With Q = D - 1
factors it is the full covariance for every purpose; fewer serve thousands of correlated numbers such as pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .linalg import Array, inverse_psd, is_traced, random_sums

FLOOR = 1e-4
"""Smallest noise, in units of each column's variance."""


class Population(NamedTuple):
    """mean (D,), loadings W (D, Q), noise (D,)."""

    mean: Array
    loadings: Array
    noise: Array

    def factors(self, x: Array, observed: Array) -> tuple[Array, Array]:
        """Mean (N, Q) and covariance (N, Q, Q) of the factors given what is observed of x (N, D).

        One covariance, (1, Q, Q), where nothing is missing and that is known.
        """
        w = self.loadings / self.noise[:, None]
        q = w.shape[1]
        if is_traced((x, observed)):
            products = jnp.einsum("nd,dq,dr->nqr", observed.astype(x.dtype), w, self.loadings)
            covariance = inverse_psd(jnp.eye(q) + products)
            return (covariance @ (jnp.where(observed, x - self.mean, 0.0) @ w)[:, :, None])[..., 0], covariance
        if observed.all():  # without a copy of x
            precision, pull = np.eye(q) + (w.T @ self.loadings)[None], x @ w - self.mean @ w
        else:
            pairs = (w[:, :, None] * self.loadings[:, None, :]).reshape(len(w), -1)
            precision = np.eye(q) + (observed.astype(float) @ pairs).reshape(-1, q, q)
            pull = np.where(observed, x - self.mean, 0.0) @ w
        covariance = np.linalg.inv(precision)
        return (covariance @ pull[:, :, None])[..., 0], covariance

    def expected(self, factors: Array) -> Array:
        return self.mean + factors @ self.loadings.T


def learn(x: np.ndarray, observed: np.ndarray, n_factor: int, *, iterations: int = 200) -> Population:
    """The population of x (N, D), its unobserved entries ignored; every column must have two observed entries."""
    if (blank := ~observed.any(1)).any():
        x, observed = x[~blank], observed[~blank]
    count = np.maximum(observed.sum(0), 1)
    mean = np.where(observed, x, 0.0).sum(0) / count
    centred = np.where(observed, x - mean, 0.0)
    variance = np.maximum((centred**2).sum(0) / count, 1e-30)
    scaled = centred / np.sqrt(variance)
    q = max(1, min(n_factor, x.shape[1] - 1, len(x) - 1))
    basis = random_sums(scaled, min(q + 8, x.shape[1]))
    for _ in range(4):  # subspace iteration
        basis = np.linalg.qr(scaled.T @ (scaled @ basis))[0]
    _, size, turn = np.linalg.svd(scaled @ basis, full_matrices=False)
    loadings = (basis @ turn[:q].T) * size[:q] / np.sqrt(len(x))
    fit = Population(np.zeros(len(mean)), loadings, np.maximum(1 - (loadings**2).sum(1), 0.05))
    weight = observed.astype(float)
    for _ in range(iterations):
        z, spread = fit.factors(scaled, observed)
        one = np.column_stack([np.ones(len(z)), z])
        if len(spread) < len(z):  # nothing is missing: one matrix for all columns
            gram = (one.T @ one)[None]
            gram[0, 1:, 1:] += len(z) * spread[0]
        else:
            second = np.zeros((len(z), q + 1, q + 1))
            second[:, 1:, 1:] = spread
            second += one[:, :, None] * one[:, None, :]
            gram = (weight.T @ second.reshape(len(z), -1)).reshape(-1, q + 1, q + 1)
        cross = scaled.T @ one
        solved = np.linalg.solve(gram + 1e-9 * np.eye(q + 1), cross[:, :, None])[..., 0]
        noise = np.maximum(((scaled**2).sum(0) - (solved * cross).sum(1)) / count, FLOOR)
        new = Population(solved[:, 0], solved[:, 1:], noise)
        change = np.abs(np.log(new.noise / fit.noise)).max()
        fit = new
        if change < 1e-3:
            break
    root = np.sqrt(variance)
    return Population(mean + root * fit.mean, root[:, None] * fit.loadings, root**2 * fit.noise)
