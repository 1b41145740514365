"""The test step of any model, star by star: a posterior density of a few unknowns, and its modes.

What inferences do with it (a Gaussian at every mode, importance sampling, NUTS) depends on nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..numerics.linalg import Array, in_float64
from ..numerics.optimize import Modes
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
    """

    energy: Callable[[Array, Any, Any], Array]
    shared: Any
    own: Any
    modes: Modes
    at_once: int = 64

    @property
    def n_star(self) -> int:
        return self.modes.location.shape[1]

    @property
    def n_latent(self) -> int:
        """M"""
        return self.modes.location.shape[2]

    def select(self, rows: np.ndarray) -> StarProblem:
        """The stars of an integer array."""
        own = jax.tree.map(lambda x: x[rows], self.own)
        return StarProblem(self.energy, self.shared, own, Modes(*(x[:, rows] for x in self.modes)), self.at_once)


def modes_of(problem: StarProblem) -> StarDraws:
    """The best mode of each star as one draw, with its inverse curvature."""
    best, covariance = np.asarray(problem.modes.location[0]), np.asarray(problem.modes.covariance[0])
    return StarDraws(best[None, None], ~np.asarray(problem.modes.converged[0]), best, covariance)


@in_float64
def draw_mixture(problem: StarProblem, seed: int, n: int, freedom: int | None = None) -> tuple[Array, Array]:
    """Draws (N, n, M) from the Laplace mixture over the modes, and their log density (N, n).

    freedom: of multivariate t components instead of normal ones, with the same centre and curvature.
    """
    modes = problem.modes
    size = (problem.n_star, n)
    rng = np.random.default_rng([seed, 15485863])  # several times cheaper than JAX's, in float64
    z, uniform = rng.standard_normal((*size, modes.location.shape[-1])), rng.random((*size, 1))
    if freedom is not None:
        z /= np.sqrt(rng.chisquare(freedom, (*size, 1)) / freedom)
    location, covariance = jnp.moveaxis(modes.location, 0, 1), jnp.moveaxis(modes.covariance, 0, 1)
    return _draw_stars(z, uniform, location, covariance, modes.weight.T, freedom)


@functools.partial(jax.jit, static_argnames="freedom")
def _draw_stars(z, uniform, location, covariance, weight, freedom):
    m = location.shape[-1]

    def one(z, uniform, location, covariance, weight):
        """Star by star: z (n, M), uniform (n, 1), location (J, M), covariance (J, M, M), weight (J,)."""
        component = (uniform > jnp.cumsum(weight)[:-1]).sum(1)
        factor = jnp.linalg.cholesky(covariance)
        inverse = jax.vmap(lambda c: jax.scipy.linalg.solve_triangular(c, jnp.eye(m), lower=True))(factor)
        u = (location[0] + z @ factor[0].T) * (component == 0)[:, None]
        for j in range(1, len(weight)):
            u = u + jnp.where((component == j)[:, None], location[j] + z @ factor[j].T, 0.0)
        terms = []
        for j in range(len(weight)):
            z2 = (((u - location[j]) @ inverse[j].T) ** 2).sum(1)
            shape = jnp.log(jnp.maximum(weight[j], 1e-300)) - jnp.log(jnp.diagonal(factor[j])).sum()
            if freedom is None:
                terms.append(shape - 0.5 * z2 - 0.5 * m * jnp.log(2 * jnp.pi))
            else:
                lgamma = jax.scipy.special.gammaln
                norm = lgamma((freedom + m) / 2) - lgamma(freedom / 2) - 0.5 * m * jnp.log(freedom * jnp.pi)
                terms.append(shape + norm - 0.5 * (freedom + m) * jnp.log1p(z2 / freedom))
        return u, jax.scipy.special.logsumexp(jnp.stack(terms), axis=0)

    return jax.vmap(one)(z, uniform, location, covariance, weight)


def log_posterior(problem: StarProblem, u: Array) -> Array:
    """Log posterior density of u (N, S, M), up to a constant per star: (N, S)."""
    return _log_posterior(problem.energy, problem.shared, problem.own, u)


@functools.partial(jax.jit, static_argnums=0)
def _log_posterior(energy, shared, own, u):
    return -jax.vmap(energy, (0, None, 0))(u, shared, own)
