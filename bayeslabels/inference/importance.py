"""Importance: exact label posteriors from weighted Laplace draws, with a diagnostic per star."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..linear import LinearModel
from ..numerics.linalg import in_float64
from ..numerics.psis import smooth_weights
from ..progress import bar
from .base import Inference, StarDraws
from .starwise import StarProblem, draw_mixture, log_posterior

KHAT_LIMIT = 0.7
"""Pareto k-hat above which importance weights are not to be trusted (Vehtari+24)."""


@dataclass(frozen=True)
class Importance(Inference):
    """Test step: draws from t distributions at the modes, weighted by the exact posterior, Pareto-smoothed.

    Exact up to Monte Carlo error where k-hat < 0.7; other stars are sampled with NUTS instead if `rescue`.

    Args:
        draws: per star. starts: starting points per star. freedom: of the proposal's t distribution.
        rescue: NUTS for stars of high k-hat.
    """

    draws: int = 1000
    starts: int = 4
    freedom: int = 8
    rescue: bool = True

    infers: ClassVar = LinearModel

    @in_float64
    def infer(self, problem: StarProblem, seed: int, progress: bool | None) -> StarDraws:
        n, size = problem.n_star, problem.at_once
        m = problem.n_latent
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
        u = u[np.random.default_rng([seed, 31]).permutation(self.draws)]
        failed = ~np.asarray(problem.modes.converged[0])
        stats = {"n_khat_high": int((khat > KHAT_LIMIT).sum()), "n_rescued": 0}
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
