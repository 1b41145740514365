"""The test step of any model, star by star: a posterior density of a few unknowns, and its modes.

What inferences do with it (a Gaussian at every mode, importance sampling, NUTS) depends on nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from ..numerics.compiling import jit
from ..numerics.linalg import Array, after, in_float64
from ..numerics.modes import Energy, Modes
from ..numerics.own_variates import chi_square, normal, other_keys, uniform
from .base import StarDraws


@dataclass(frozen=True)
class StarProblem:
    """Everything that the posteriors of N stars depend on.

    Attributes:
        energy: minus log posterior (S,), up to a constant per star, of points u (S, M): energy(u, shared, own of one
            star). Hashable, equal for equal functions: what it computes with is in the other two.
        shared: arrays that all stars have in common. own: pytree of arrays with a row per star.
        modes: the optima of every star.
        at_once: so many stars' draws stay in the cache.
        beside: what the energy was computed from at the best mode of every star (`Energy.in_passing`), if it is known.
    """

    energy: Energy
    shared: Any
    own: Any
    modes: Modes
    at_once: int = 64
    beside: Any = None

    @property
    def n_star(self) -> int:
        return self.modes.location.shape[1]

    @property
    def n_latent(self) -> int:
        """M"""
        return self.modes.location.shape[2]

    def select(self, rows: np.ndarray) -> StarProblem:
        """The stars of an integer array."""
        own, beside = jax.tree.map(lambda x: x[rows], (self.own, self.beside))
        return dataclasses.replace(self, own=own, beside=beside, modes=Modes(*(x[:, rows] for x in self.modes)))


def modes_of(problem: StarProblem) -> StarDraws:
    """The best mode of each star as one draw, with its inverse curvature."""
    best, covariance = np.asarray(problem.modes.location[0]), np.asarray(problem.modes.covariance[0])
    return StarDraws(best[None, None], ~np.asarray(problem.modes.converged[0]), best, covariance)


@in_float64
def draw_mixture(problem: StarProblem, keys: np.ndarray, n: int, freedom: int | None = None) -> tuple[Array, Array]:
    """Draws (N, n, M) from the Laplace mixture over the modes, and their log density (N, n); keys (N, 2): the stars'.

    freedom: of multivariate t components instead of normal ones, with the same centre and curvature.
    """
    return _draw_mixture(keys, problem.modes, n, freedom)


@functools.partial(jit, static_argnames=("n", "freedom"))
def _draw_mixture(keys: Array, modes: Modes, n: int, freedom: int | None) -> tuple[Array, Array]:
    m = modes.location.shape[-1]
    z = normal(keys, n * m).reshape(-1, n, m).astype(modes.location.dtype)
    if freedom is not None:
        z = z / jnp.sqrt(chi_square(other_keys(keys, 1), n, freedom) / freedom)[..., None]
    return _draw_stars(z, uniform(other_keys(keys, 2), n)[..., None], modes, freedom)


def even_points(n: int, d: int) -> np.ndarray:
    """n points (n, d) of the unit cube: in every column the middles of n equal parts, in an order of its own."""
    rng = np.random.default_rng(15485867)
    return (np.stack([rng.permutation(n) for _ in range(d)], 1) + 0.5) / n


@in_float64
def spread_mixture(problem: StarProblem, points: np.ndarray) -> Array:
    """(N, n, M): the Laplace mixture at points (n, M + 1) of the unit cube that all stars share.

    For moments of every star: those of the Gaussians themselves are exact, and no star's depend on the stars beside it.
    """
    n, shape = len(points), (problem.n_star, len(points))
    z = ndtri(points[:, :-1])
    z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / n)).T
    z, which = np.broadcast_to(z, (*shape, z.shape[1])), np.broadcast_to(points[:, -1:], (*shape, 1))
    return _draw_stars(z, which, problem.modes, None)[0]


@functools.partial(jit, static_argnames="freedom")
def _draw_stars(z: Array, which: Array, modes: Modes, freedom: float | None) -> tuple[Array, Array]:
    m, weights = modes.location.shape[-1], modes.weight
    covariances = after(modes.covariance, weights)  # the weights' determinants, and these roots

    def one(z: Array, which: Array, location: Array, covariance: Array, weight: Array) -> tuple[Array, Array]:
        """Star by star: z (n, M), which (n, 1) between 0 and 1, location (J, M), covariance (J, M, M), weight (J,)."""
        upper = jnp.cumsum(weight)
        component = (which > upper[:-1]).sum(1, keepdims=True) == jnp.arange(len(weight))
        factor = jnp.linalg.cholesky(covariance)
        inverse = jax.scipy.linalg.solve_triangular(factor, jnp.broadcast_to(jnp.eye(m), factor.shape), lower=True)
        own = component.astype(z.dtype) @ jnp.concatenate([location, factor.reshape(len(weight), -1)], 1)
        u = own[:, :m] + (own[:, m:].reshape(-1, m, m) * z[:, None]).sum(-1)
        white = u @ inverse.reshape(-1, m).T - jnp.einsum("jik,jk->ji", inverse, location).reshape(-1)
        z2 = (white.reshape(-1, len(weight), m) ** 2).sum(-1)
        shape = jnp.log(jnp.maximum(weight, 1e-300)) - jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(1)
        if freedom is None:
            terms = shape - 0.5 * z2 - 0.5 * m * jnp.log(2 * jnp.pi)
        else:
            lgamma = jax.scipy.special.gammaln
            norm = lgamma((freedom + m) / 2) - lgamma(freedom / 2) - 0.5 * m * jnp.log(freedom * jnp.pi)
            terms = shape + norm - 0.5 * (freedom + m) * jnp.log1p(z2 / freedom)
        return u, jax.scipy.special.logsumexp(terms, axis=1)

    return jax.vmap(one, (0, 0, 1, 1, 1))(z, which, modes.location, covariances, weights)


def in_passing(problem: StarProblem, u: Array) -> tuple[Array, Any]:
    """Log posterior density (N, S) of u (N, S, M), up to a constant per star, and what it was computed from: a pytree
    of (N, S, ...), or None."""
    return _in_passing(problem.energy, problem.shared, problem.own, u)


@functools.partial(jit, static_argnums=0)
def _in_passing(energy: Energy, shared: Any, own: Any, u: Array) -> tuple[Array, Any]:
    f, beside = jax.vmap(energy.in_passing, (0, None, 0))(u, shared, own)
    return -f, beside
