"""Modes of the quartic label posteriors: batched Levenberg-Marquardt from many starts."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .compress import Statistics
from .features import Monomials
from .linalg import Array, in_float64, inverse_psd


class Modes(NamedTuple):
    """Up to J distinct optima per star, best first.

    location (J, N, M); covariance (J, N, M, M), the inverse curvature; objective (J, N), +inf for no such mode;
    converged (J, N).
    """

    location: Array
    covariance: Array
    objective: Array
    converged: Array

    @property
    def weight(self) -> Array:
        """Laplace estimate of the probability of each mode, (J, N)."""
        _, logdet = jnp.linalg.slogdet(self.covariance)
        score = jnp.where(jnp.isfinite(self.objective), -self.objective + 0.5 * logdet, -jnp.inf)
        return jax.nn.softmax(score, axis=0)


def objective(u, statistics: Statistics, precision, information, features: Monomials):
    """Minus log posterior density of u (N, M), up to a constant: the quartic plus 1/2 u' P u - h' u."""
    quadratic = 0.5 * jnp.einsum("nm,nmk,nk->n", u, precision, u) - (information * u).sum(-1)
    return quadratic - statistics.linear_log_likelihood(features(u))


@functools.partial(jax.jit, static_argnames=("features", "iterations"))
def descend(u, statistics: Statistics, precision, information, features: Monomials, iterations: int = 60):
    """Levenberg-Marquardt from u (N, M) with prior precision (N, M, M) and information (N, M).

    Returns (u, curvature (N, M, M), objective (N,), converged (N,)). The step uses the Gauss-Newton matrix, which is
    positive definite; convergence asks for a Newton decrement below 1e-10 nat.
    """
    value = functools.partial(
        objective, statistics=statistics, precision=precision, information=information, features=features
    )
    m = u.shape[-1]

    def derivatives(u):
        phi, jac = features(u), features.jacobian(u)
        slope = jnp.einsum("nkl,nl->nk", statistics.gram, phi) - statistics.linear
        gradient = jnp.einsum("nkm,nk->nm", jac, slope) + jnp.einsum("nmk,nk->nm", precision, u) - information
        curvature = jnp.einsum("nkm,nkl,nlj->nmj", jac, statistics.gram, jac) + precision
        return gradient, curvature

    def step(state):
        u, f, damping, _, count = state
        gradient, curvature = derivatives(u)
        diagonal = jnp.diagonal(curvature, axis1=1, axis2=2)[:, :, None] * jnp.eye(m)
        move = jnp.linalg.solve(curvature + damping[:, None, None] * diagonal, gradient[..., None])[..., 0]
        decrement = jnp.einsum("nm,nm->n", gradient, move)
        trial = u - move
        f_trial = value(trial)
        better = f_trial <= f
        u = jnp.where(better[:, None], trial, u)
        f = jnp.where(better, f_trial, f)
        damping = jnp.where(better, jnp.maximum(damping * 0.1, 1e-12), jnp.minimum(damping * 8, 1e12))
        done = decrement < 1e-10 * (1 + 1e-6 * jnp.abs(f))
        return u, f, damping, done, count + 1

    def unfinished(state):
        return ~jnp.all(state[3]) & (state[4] < iterations)

    f = value(u)
    n = u.shape[0]
    start = (u, f, jnp.full(n, 1e-3), ~jnp.isfinite(f), 0)
    u, f, _, done, _ = jax.lax.while_loop(unfinished, step, start)
    return u, derivatives(u)[1], f, done & jnp.isfinite(f)


@jax.jit
def _tile(statistics, precision, information, starts):
    j, n, m = starts.shape
    tiled = jax.tree.map(lambda x: jnp.broadcast_to(x, (j, *x.shape)).reshape(j * n, *x.shape[1:]), statistics)
    return (
        starts.reshape(j * n, m),
        tiled,
        jnp.broadcast_to(precision, (j, *precision.shape)).reshape(j * n, m, m),
        jnp.broadcast_to(information, (j, *information.shape)).reshape(j * n, m),
    )


@functools.partial(jax.jit, static_argnames=("features",))
def newton_curvature(u, statistics: Statistics, precision, information, features: Monomials):
    """Full Hessian (N, M, M) of `objective`; the Gauss-Newton matrix where it is not positive definite."""
    jac = features.jacobian(u)
    gauss_newton = jnp.einsum("nkm,nkl,nlj->nmj", jac, statistics.gram, jac) + precision
    slope = jnp.einsum("nkl,nl->nk", statistics.gram, features(u)) - statistics.linear
    second = jax.vmap(jax.jacfwd(features.jacobian))(u)
    hessian = gauss_newton + jnp.einsum("nk,nkmj->nmj", slope, second)
    hessian = 0.5 * (hessian + jnp.swapaxes(hessian, 1, 2))
    definite = jnp.linalg.eigvalsh(hessian)[:, 0] > 1e-3 * jnp.linalg.eigvalsh(gauss_newton)[:, 0]
    return jnp.where(definite[:, None, None], hessian, gauss_newton)


@in_float64
def find_modes(
    statistics: Statistics,
    precision: Array,
    information: Array,
    features: Monomials,
    starts: Array,
    *,
    keep: int = 3,
    threshold: float = 12.0,
) -> Modes:
    """Distinct optima reached from starts (J, N, M), at most `keep` per star and `threshold` nats from the best."""
    j, n, _ = starts.shape
    precision, information = jnp.asarray(precision), jnp.asarray(information)
    u, tiled, p, h = _tile(statistics, precision, information, jnp.asarray(starts))
    u, curvature, f, done = descend(u, tiled, p, h, features)
    u, curvature, f, done = (x.reshape(j, n, *x.shape[1:]) for x in (u, curvature, f, done))
    f = jnp.where(done, f, f + 1e6)
    locations, objectives, converged = [], [], []
    remaining = jnp.where(jnp.isfinite(f), f, jnp.inf)
    best = remaining.min(0)
    for _ in range(min(keep, j)):
        pick = jnp.argmin(remaining, axis=0)
        at = jnp.take_along_axis(u, pick[None, :, None], 0)[0]
        value = jnp.take_along_axis(remaining, pick[None], 0)[0]
        value = jnp.where(value > best + threshold, jnp.inf, value)
        locations.append(at)
        objectives.append(value)
        converged.append(jnp.take_along_axis(done, pick[None], 0)[0])
        shape = jnp.take_along_axis(curvature, pick[None, :, None, None], 0)[0]
        distance = jnp.einsum("jnm,nmk,jnk->jn", u - at, shape, u - at)
        remaining = jnp.where(distance < 1.0, jnp.inf, remaining)
    location = jnp.stack(locations)
    covariance = jnp.stack(
        [inverse_psd(newton_curvature(x, statistics, precision, information, features)) for x in location]
    )
    return Modes(location, covariance, jnp.stack(objectives), jnp.stack(converged))
