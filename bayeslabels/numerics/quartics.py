"""Modes of the quartic label posteriors: batched Levenberg-Marquardt from many starts."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .compiling import jit
from .compress import Statistics, by_blocks
from .features import Features
from .linalg import Array, in_float64, inverse_psd, outer_pairs, pack, pairs
from .lockstep import solve_small
from .modes import Modes, definite_or, distinct

FIRST_STEPS = 4
"""Iterations that all starts get together."""
SIDE_BY_SIDE = 4
"""Starts of a star are filled up to a multiple of this, where there is more than one."""

TOLERANCE = 1e-10
"""Newton decrement, in nats, of a star that has arrived at its mode."""
NEAR = 0.01
"""Newton decrement from which a full Newton step converges; from `TOLERANCE` it ends at rounding."""


class _Problem(NamedTuple):
    """What the densities of N stars depend on."""

    statistics: Statistics
    precision: Array
    information: Array


def objective(u: Array, statistics: Statistics, precision: Array, information: Array, features: Features) -> Array:
    """Minus log posterior density of u (N, M), up to a constant: the quartic plus 1/2 u' P u - h' u."""
    quadratic = 0.5 * jnp.einsum("nm,nmk,nk->n", u, precision, u) - (information * u).sum(-1)
    return quadratic - statistics.linear_log_likelihood(features(u))


def _locally(u: Array, problem: _Problem, features: Features, newton: bool) -> tuple[Array, Array, Array]:
    """`objective` (N,), its gradient (N, M) and a positive definite curvature (N, M, M): the Gauss-Newton matrix, or
    with `newton` the Hessian where that is positive definite."""
    statistics, precision, information = problem
    phi, jac = features(u), features.jacobian(u)
    moved = statistics.gram @ jnp.concatenate([phi[..., None], jac], -1)
    slope, pulled = moved[..., 0] - statistics.linear, (precision * u[:, None]).sum(-1)
    value = (phi * (0.5 * moved[..., 0] - statistics.linear)).sum(-1) + (u * (0.5 * pulled - information)).sum(-1)
    both = jnp.swapaxes(jac, 1, 2) @ moved.at[..., 0].set(slope)
    gradient, curvature = both[..., 0] + pulled - information, both[..., 1:] + precision
    if newton:
        bent = (slope[:, :, None, None] * features.hessian(u)).sum(1)
        curvature = definite_or(curvature + bent, curvature)
    return value, gradient, curvature


@functools.partial(jit, static_argnames=("features", "iterations", "newton"))
def descend(
    u: Array,
    problem: _Problem,
    features: Features,
    iterations: int = 60,
    newton: bool = False,
    tolerance: float = TOLERANCE,
) -> tuple[Array, Array, Array, Array]:
    """Levenberg-Marquardt from u (N, M), to the mode of the `objective` of each star.

    Returns (u, curvature (N, M, M), objective (N,), converged (N,)). The step uses the Gauss-Newton matrix, which is
    positive definite, or with `newton` the full Hessian where that is, which large residuals need; convergence asks
    for a Newton decrement below `tolerance` nat.
    """
    m = u.shape[-1]

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        """The first step stays where it is: everything is evaluated in one place, which is compiled once."""
        u, f, gradient, curvature, damping, _, count = state
        diagonal = jnp.diagonal(curvature, axis1=1, axis2=2)[:, :, None] * jnp.eye(m)
        move = solve_small(curvature + damping[:, None, None] * diagonal, gradient)
        decrement = (gradient * move).sum(-1)
        trial = u - move
        f_trial, *local = _locally(trial, problem, features, newton)
        first, arrived = count < 0, decrement < tolerance + 1e-16 * jnp.abs(f)
        # so near to the mode f is rounded by more than the step gains, and the step is right without it
        better = f_trial <= jnp.where(arrived & ~first, jnp.inf, f)
        u = jnp.where(better[:, None], trial, u)
        gradient = jnp.where(better[:, None], local[0], gradient)
        curvature = jnp.where(better[:, None, None], local[1], curvature)
        f = jnp.where(better, f_trial, f)
        changed = jnp.where(better, jnp.maximum(damping * 0.1, 1e-12), jnp.minimum(damping * 8, 1e12))
        done = ~jnp.isfinite(f) | (arrived & ~first)
        return u, f, gradient, curvature, jnp.where(first, damping, changed), done, count + 1

    def unfinished(state: tuple[Array, ...]) -> Array:
        return ~jnp.all(state[5]) & (state[6] < iterations)

    one = jnp.ones(len(u))
    still = jnp.zeros_like(u), jnp.broadcast_to(jnp.eye(m), (*u.shape, m))
    start = (u, jnp.inf * one, *still, 1e-3 * one, one < 0, -1)
    u, f, _, curvature, _, done, _ = jax.lax.while_loop(unfinished, step, start)
    return u, curvature, f, done & jnp.isfinite(f)


def newton_curvature(u: Array, problem: _Problem, features: Features) -> Array:
    """Full Hessian (N, M, M) of `objective`; the Gauss-Newton matrix where it is not positive definite."""
    return _locally(u, problem, features, True)[2]


@functools.partial(jit, static_argnames=("features",))
def linear_posterior(
    gram: Array, linear: Array, precision: Array, information: Array, features: Features
) -> tuple[Array, Array]:
    """Mean (N, P) and covariance (N, P, P) of u where phi is linear, so that the posterior is Gaussian.

    gram (N, K, K), linear (N, K) as in `Statistics`; precision (N, P, P) and information (N, P) of the prior.
    """
    origin = jnp.zeros(features.n_label)
    at_zero, jac = features(origin), features.jacobian(origin)
    covariance = inverse_psd(jac.T @ gram @ jac + precision)
    information = information + (linear - gram @ at_zero) @ jac
    return jnp.einsum("nij,nj->ni", covariance, information), covariance


def choose_starts(
    candidates: np.ndarray, statistics: Statistics, precision: np.ndarray, information: np.ndarray,
    features: Features, groups: int,
) -> np.ndarray:  # fmt: skip
    """The best candidate of each of `groups` stretches of candidates (S, M), neighbours alike: (groups, N, M).

    The objective of all candidates and stars is one matrix product.
    """
    phi = features(candidates)
    _, _, multiplicity = pairs(phi.shape[1])
    quadratic = (outer_pairs(phi) * multiplicity) @ pack(statistics.gram).T
    prior = (outer_pairs(candidates) * pairs(candidates.shape[1])[2]) @ pack(precision).T
    f = 0.5 * (quadratic + prior) - phi @ statistics.linear.T - candidates @ information.T
    size = -(-len(candidates) // groups)
    return np.stack([candidates[i * size + f[i * size : (i + 1) * size].argmin(0)] for i in range(groups)])


@in_float64
def find_quartic_modes(
    statistics: Statistics,
    precision: Array,
    information: Array,
    features: Features,
    starts: Array,
    *,
    keep: int = 3,
    threshold: float = 12.0,
    tolerance: float = TOLERANCE,
) -> Modes:
    """Distinct optima reached from starts (J, N, M), at most `keep` per star and `threshold` nats from the best.

    Most starts arrive within a few steps; the few that do not go on by themselves. Features of first order have one
    mode, found at once. Arrays of NumPy, in and out.
    """
    problem = _Problem(statistics, precision, information)
    if features.linear:
        location, covariance, at = by_blocks(functools.partial(_only_mode, features), problem)
        return Modes(location[None], covariance[None], at[None], np.isfinite(at)[None])
    several, j = np.moveaxis(np.asarray(starts), 0, 1), len(starts)
    if j > 1:
        several = np.pad(several, ((0, 0), (0, -j % SIDE_BY_SIDE), (0, 0)), mode="edge")
    u, f, done = by_blocks(functools.partial(_descend_starts, features, tolerance), several, problem)
    late, which = np.nonzero(~done)
    if len(late):
        own = jax.tree.map(lambda x: np.asarray(x)[late], problem)
        found = by_blocks(functools.partial(_descend_late, features, tolerance), u[late, which], own)
        for x, y in zip((u, f, done), found, strict=True):
            x[late, which] = y
    found = by_blocks(functools.partial(_distinct, features, 1 if j == 1 else keep, threshold), u, f, done, problem)
    return Modes(*(np.moveaxis(x, 1, 0)[:j] for x in found))


@functools.partial(jit, static_argnums=0)
def _only_mode(features: Features, problem: _Problem) -> tuple[Array, Array, Array]:
    location, covariance = linear_posterior(
        problem.statistics.gram, problem.statistics.linear, problem.precision, problem.information, features
    )
    at = objective(location, problem.statistics, problem.precision, problem.information, features)
    return location, covariance, at


@functools.partial(jit, static_argnums=0)
def _descend_starts(
    features: Features, tolerance: float, starts: Array, problem: _Problem
) -> tuple[Array, Array, Array]:
    """All starts (N, J, M) of a star side by side, so that its matrices are read once for all of them."""

    def one(u: Array) -> tuple[Array, Array, Array]:
        u, _, f, done = descend(u, problem, features, FIRST_STEPS, tolerance=tolerance)
        return u, f, done

    return jax.vmap(one, 1, 1)(starts)


@functools.partial(jit, static_argnums=0)
def _descend_late(features: Features, tolerance: float, u: Array, problem: _Problem) -> tuple[Array, Array, Array]:
    u, _, f, done = descend(u, problem, features, 100, True, tolerance)
    return u, f, done


@functools.partial(jit, static_argnums=(0, 1))
def _distinct(
    features: Features, keep: int, threshold: float, u: Array, f: Array, done: Array, problem: _Problem
) -> tuple[Array, ...]:
    """`Modes` with the stars first."""
    u, f, done = (jnp.moveaxis(x, 1, 0) for x in (u, f, done))
    found = distinct(u, f, done, lambda at, _: newton_curvature(at, problem, features), keep, threshold)
    location, covariance = jax.vmap(functools.partial(_exactly, features, problem))(found.location)
    found = found._replace(location=location, covariance=covariance)
    return tuple(jnp.moveaxis(x, 1, 0) for x in found)


def _exactly(features: Features, problem: _Problem, u: Array) -> tuple[Array, Array]:
    """Modes (N, M), and their covariances, that do not depend on the way to them: u is near to them."""

    def step(count: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        u, _ = state
        _, gradient, curvature = _locally(u, problem, features, True)
        move = solve_small(curvature, gradient)
        near = (gradient * move).sum(-1) < NEAR
        return jnp.where((near & (count == 0))[:, None], u - move, u), curvature

    u, curvature = jax.lax.fori_loop(0, 2, step, (u, jnp.zeros((*u.shape, u.shape[-1]))))
    return u, inverse_psd(curvature)


def settle(
    u: np.ndarray, statistics: Statistics, precision: np.ndarray, information: np.ndarray, features: Features,
    iterations: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mean (N, M) and covariance (N, M, M): exact where phi is linear, else Gaussian at the mode that u leads to."""
    problem = _Problem(statistics, precision, information)
    if features.linear:
        return by_blocks(functools.partial(_only_mode, features), problem)[:2]
    return by_blocks(functools.partial(_settle, features, iterations), u, problem)


@functools.partial(jit, static_argnums=(0, 1))
def _settle(features: Features, iterations: int, u: Array, problem: _Problem) -> tuple[Array, Array]:
    u, *_ = descend(u, problem, features, iterations)
    return u, inverse_psd(newton_curvature(u, problem, features))
