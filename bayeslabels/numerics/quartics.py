"""Modes of the quartic label posteriors: batched Levenberg-Marquardt from many starts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .compress import STARS, Statistics
from .features import Monomials
from .linalg import Array, in_float64, inverse_psd, outer_pairs, pack, pairs
from .lockstep import solve_small
from .modes import Modes, definite_or, distinct

FIRST_STEPS = 4
"""Iterations that all starts get together."""

TOLERANCE = 1e-10
"""Newton decrement, in nats, of a star that has arrived at its mode."""


def objective(u, statistics: Statistics, precision, information, features: Monomials):
    """Minus log posterior density of u (N, M), up to a constant: the quartic plus 1/2 u' P u - h' u."""
    quadratic = 0.5 * jnp.einsum("nm,nmk,nk->n", u, precision, u) - (information * u).sum(-1)
    return quadratic - statistics.linear_log_likelihood(features(u))


@functools.partial(jax.jit, static_argnames=("features", "iterations", "newton"))
def descend(
    u, statistics: Statistics, precision, information, features: Monomials,
    iterations: int = 60, newton: bool = False, tolerance: float = TOLERANCE,
):  # fmt: skip
    """Levenberg-Marquardt from u (N, M) with prior precision (N, M, M) and information (N, M).

    Returns (u, curvature (N, M, M), objective (N,), converged (N,)). The step uses the Gauss-Newton matrix, which is
    positive definite, or with `newton` the full Hessian where that is, which large residuals need; convergence asks
    for a Newton decrement below `tolerance` nat.
    """
    value = functools.partial(
        objective, statistics=statistics, precision=precision, information=information, features=features
    )
    m = u.shape[-1]

    def derivatives(u):
        phi, jac = features(u), features.jacobian(u)
        moved = statistics.gram @ jnp.concatenate([phi[..., None], jac], -1)
        slope = moved[..., 0] - statistics.linear
        gradient = jnp.einsum("nkm,nk->nm", jac, slope) + jnp.einsum("nmk,nk->nm", precision, u) - information
        if newton:
            return gradient, newton_curvature(u, statistics, precision, information, features)
        return gradient, jnp.einsum("nkm,nkj->nmj", jac, moved[..., 1:]) + precision

    def step(state):
        u, f, damping, _, count = state
        gradient, curvature = derivatives(u)
        diagonal = jnp.diagonal(curvature, axis1=1, axis2=2)[:, :, None] * jnp.eye(m)
        move = solve_small(curvature + damping[:, None, None] * diagonal, gradient)
        decrement = jnp.einsum("nm,nm->n", gradient, move)
        trial = u - move
        f_trial = value(trial)
        better = f_trial <= f
        u = jnp.where(better[:, None], trial, u)
        f = jnp.where(better, f_trial, f)
        damping = jnp.where(better, jnp.maximum(damping * 0.1, 1e-12), jnp.minimum(damping * 8, 1e12))
        done = decrement < tolerance + 1e-16 * jnp.abs(f)
        return u, f, damping, done, count + 1

    def unfinished(state):
        return ~jnp.all(state[3]) & (state[4] < iterations)

    f = value(u)
    n = u.shape[0]
    start = (u, f, jnp.full(n, 1e-3), ~jnp.isfinite(f), 0)
    u, f, _, done, _ = jax.lax.while_loop(unfinished, step, start)
    return u, derivatives(u)[1], f, done & jnp.isfinite(f)


@functools.partial(jax.jit, static_argnames=("features",))
def newton_curvature(u, statistics: Statistics, precision, information, features: Monomials):
    """Full Hessian (N, M, M) of `objective`; the Gauss-Newton matrix where it is not positive definite."""
    jac = features.jacobian(u)
    gauss_newton = jnp.einsum("nkm,nkl,nlj->nmj", jac, statistics.gram, jac) + precision
    slope = jnp.einsum("nkl,nl->nk", statistics.gram, features(u)) - statistics.linear
    second = jax.vmap(jax.jacfwd(features.jacobian))(u)
    hessian = gauss_newton + jnp.einsum("nk,nkmj->nmj", slope, second)
    return definite_or(hessian, gauss_newton)


@functools.partial(jax.jit, static_argnames=("features",))
def linear_posterior(gram, linear, precision, information, features: Monomials):
    """Mean (N, P) and covariance (N, P, P) of u where phi is linear, so that the posterior is Gaussian.

    gram (N, K, K), linear (N, K) as in `Statistics`; precision (N, P, P) and information (N, P) of the prior.
    """
    origin = jnp.zeros(features.n_label)
    at_zero, jac = features(origin), features.jacobian(origin)
    covariance = inverse_psd(jac.T @ gram @ jac + precision)
    information = information + (linear - gram @ at_zero) @ jac
    return jnp.einsum("nij,nj->ni", covariance, information), covariance


@functools.partial(jax.jit, static_argnames=("features", "groups"))
def choose_starts(candidates, statistics: Statistics, precision, information, features: Monomials, groups: int):
    """Of candidates (S, M), neighbours alike, the best of each of `groups` stretches: (groups, N, M).

    The objective of all candidates and stars is one matrix product.
    """
    phi = features(candidates)
    _, _, multiplicity = pairs(phi.shape[1])
    quadratic = (outer_pairs(phi) * multiplicity) @ pack(statistics.gram).T
    prior = (outer_pairs(candidates) * pairs(candidates.shape[1])[2]) @ pack(precision).T
    f = 0.5 * (quadratic + prior) - phi @ statistics.linear.T - candidates @ information.T
    size = -(-len(candidates) // groups)
    picks = [i * size + jnp.argmin(f[i * size : (i + 1) * size], axis=0) for i in range(groups)]
    return jnp.stack([candidates[pick] for pick in picks])


@in_float64
def find_quartic_modes(
    statistics: Statistics,
    precision: Array,
    information: Array,
    features: Monomials,
    starts: Array,
    *,
    keep: int = 3,
    threshold: float = 12.0,
    tolerance: float = TOLERANCE,
) -> Modes:
    """Distinct optima reached from starts (J, N, M), at most `keep` per star and `threshold` nats from the best.

    Most starts arrive within a few steps; the few that do not go on by themselves. Features of first order have one
    mode, found at once.
    """
    if features.order == 1:
        prior = (jnp.asarray(precision), jnp.asarray(information))
        location, covariance = linear_posterior(statistics.gram, statistics.linear, *prior, features)
        at = objective(location, statistics, *prior, features)
        return Modes(location[None], covariance[None], at[None], jnp.isfinite(at)[None])
    j, n, _ = starts.shape
    problem = (statistics, jnp.asarray(precision), jnp.asarray(information))
    u, f, done = _descend_starts(jnp.asarray(starts), *problem, tolerance, features)
    late = np.flatnonzero(~np.asarray(done))
    if len(late):
        rows = np.resize(late, len(late) + -len(late) % STARS)
        u, f, done = _descend_late(u, f, done, rows // n, rows % n, *problem, tolerance, features)
    return _distinct(u, f, done, *problem, features, min(keep, j), threshold)


@functools.partial(jax.jit, static_argnames=("features",))
def _descend_starts(starts, statistics, precision, information, tolerance, features):
    """All starts (J, N, M) of a star side by side, so that its matrices are read once for all of them."""
    u, _, f, done = jax.vmap(
        lambda u: descend(u, statistics, precision, information, features, FIRST_STEPS, tolerance=tolerance)
    )(starts)
    return u, f, done


@functools.partial(jax.jit, static_argnames=("features",))
def _descend_late(u, f, done, start, star, statistics, precision, information, tolerance, features):
    own = jax.tree.map(lambda x: x[star], (statistics, precision, information))
    at, _, value, arrived = descend(u[start, star], *own, features, 100, True, tolerance)
    return tuple(x.at[start, star].set(y) for x, y in zip((u, f, done), (at, value, arrived), strict=True))


@functools.partial(jax.jit, static_argnames=("features", "keep"))
def _distinct(u, f, done, statistics, precision, information, features, keep, threshold):
    curvature = functools.partial(
        newton_curvature, statistics=statistics, precision=precision, information=information, features=features
    )
    return distinct(u, f, done, lambda at, _: curvature(at), keep, threshold)
