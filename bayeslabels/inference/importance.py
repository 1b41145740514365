"""Importance: exact label posteriors from weighted Laplace draws, with a diagnostic per star."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..linear import LinearModel
from ..numerics.linalg import in_float64
from ..numerics.optimize import Modes
from ..numerics.psis import smooth_weights
from ..progress import bar
from .base import Inference, StarDraws
from .starwise import StarProblem, draw_mixture, log_posterior

KHAT_LIMIT = 0.7
"""Pareto k-hat above which importance weights are not to be trusted (Vehtari+24)."""


ROUNDS = 3
"""Further proposals, each learned from the draws before, of stars whose k-hat is above the limit."""
COMPONENTS = 24
BREADTH = 0.6
"""Their components, and the breadth of these in sd of the draws."""


class Weighted(NamedTuple):
    """Draws of equal weight (S, N, M), k-hat and effective sample size (N,), mean (N, M) and covariance (N, M, M)."""

    u: np.ndarray
    khat: np.ndarray
    ess: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class Importance(Inference):
    """Test step: draws from t distributions at the modes, weighted by the exact posterior, Pareto-smoothed.

    Exact up to Monte Carlo error where k-hat < 0.7; other stars get better proposals, learned from their draws, and if
    that does not help are sampled with NUTS if `rescue`.

    Args:
        draws: per star. starts: starting points per star. freedom: of the proposal's t distribution.
        rescue: NUTS for stars of high k-hat.
    """

    draws: int = 1000
    starts: int = 4
    freedom: int = 8
    rescue: bool = True

    infers: ClassVar = LinearModel

    def _weighted(self, problem: StarProblem, seed: int, progress: bool | None) -> Weighted:
        n, size, m = problem.n_star, problem.at_once, problem.n_latent
        u, khat, ess = np.empty((self.draws, n, m)), np.empty(n), np.empty(n)
        mean, covariance = np.empty((n, m)), np.empty((n, m, m))
        with bar(n, "importance sampling", progress) as shown:
            for start in range(0, n, size):
                rows = np.minimum(np.arange(start, start + size), n - 1)
                kept = min(size, n - start)
                here = slice(start, start + kept)
                part = problem.select(rows)
                draws, proposal = draw_mixture(part, seed + 1_000_003 * start, self.draws, self.freedom)
                out = _weigh(draws, log_posterior(part, draws) - proposal)
                picked, khat[here], ess[here], mean[here], covariance[here] = (np.asarray(x)[:kept] for x in out)
                u[:, here] = np.moveaxis(picked, 0, 1)
                shown.update(kept)
        return Weighted(u, khat, ess, mean, covariance)

    @in_float64
    def infer(self, problem: StarProblem, seed: int, progress: bool | None) -> StarDraws:
        n = problem.n_star
        u, khat, ess, mean, covariance = self._weighted(problem, seed, progress)
        u = u[np.random.default_rng([seed, 31]).permutation(self.draws)]
        failed = ~np.asarray(problem.modes.converged[0])
        stats = {"n_khat_high": int((khat > KHAT_LIMIT).sum()), "n_rescued": 0}
        for round in range(ROUNDS):
            high = np.flatnonzero((khat > KHAT_LIMIT) & ~failed)
            if not len(high):
                break
            again = self._weighted(_nearer(problem.select(high), u[:, high], seed + round), seed + round + 1, False)
            better = np.flatnonzero(again.khat < khat[high])
            rows = high[better]
            u[:, rows] = again.u[:, better]
            khat[rows], ess[rows] = again.khat[better], again.ess[better]
            mean[rows], covariance[rows] = again.mean[better], again.covariance[better]
        rescued = np.zeros(n, bool)
        high = np.flatnonzero((khat > KHAT_LIMIT) & ~failed)
        if self.rescue and len(high):
            from .nuts import NUTS

            sampled = NUTS(chains=4, draws=-(-self.draws // 4)).infer(problem.select(high), seed, progress)
            draws = sampled.u.reshape(-1, len(high), u.shape[-1])[: self.draws]
            u[:, high], rescued[high] = draws, True
            mean[high] = draws.mean(0)
            covariance[high] = np.einsum("snm,snk->nmk", draws - draws.mean(0), draws - draws.mean(0)) / len(draws)
            stats["n_rescued"] = len(high)
        per_star = {"khat": khat, "ess": ess, "rescued": rescued}
        return StarDraws(u[None], failed, mean, covariance, per_star, stats)


def _nearer(problem: StarProblem, u: np.ndarray, seed: int) -> StarProblem:
    """With components at some of the draws u (S, N, M), narrower than these, in the place of the modes.

    A proposal that follows a bent or bounded posterior where a Gaussian cannot (West 1993).
    """
    pick = np.random.default_rng([seed, 611953]).choice(len(u), COMPONENTS, replace=False)
    off = u - u.mean(0)
    covariance = np.einsum("snm,snk->nmk", off, off) / len(u)
    covariance += 1e-6 * np.eye(u.shape[2]) * np.einsum("nmm->n", covariance)[:, None, None]
    shape = (COMPONENTS, u.shape[1])
    spread = np.broadcast_to(BREADTH**2 * covariance, (COMPONENTS, *covariance.shape))
    modes = Modes(u[pick], spread, np.zeros(shape), np.ones(shape, bool))
    return dataclasses.replace(problem, modes=modes)


@jax.jit
@jax.vmap
def _weigh(u, log_ratio):
    """Per star: draws resampled to equal weight (S, M), k-hat, effective sample size, weighted mean and covariance."""
    log_weight, khat = smooth_weights(log_ratio)
    weight = jnp.exp(log_weight)
    mean = weight @ u
    offset = u - mean
    covariance = (weight[:, None] * offset).T @ offset
    position = (jnp.arange(len(u)) + 0.5) / len(u)
    pick = jnp.searchsorted(jnp.cumsum(weight), position).clip(0, len(u) - 1)
    return u[pick], khat, 1 / (weight**2).sum(), mean, covariance
