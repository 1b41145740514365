"""Importance: exact label posteriors from weighted Laplace draws, with a diagnostic per star."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..model import LinearModel
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
    freedom: float = 8.0
    rescue: bool = True

    infers: ClassVar = LinearModel

    @in_float64
    def infer(self, problem: StarProblem, seed: int, progress: bool | None) -> StarDraws:
        n, size = problem.n_star, 256
        parts = []
        with bar(n, "importance sampling", progress) as shown:
            for start in range(0, n, size):
                rows = np.minimum(np.arange(start, start + size), n - 1)
                kept = min(size, n - start)
                out = self._weigh(problem.select(rows), seed + 1_000_003 * start)
                parts.append([x[..., :kept, :] if x.ndim == 3 else x[..., :kept] for x in out[:2]])
                parts[-1] += [out[2][:kept], out[3][:kept], out[4][:kept]]
                shown.update(kept)
        u, khat = (np.concatenate([p[i] for p in parts], 1 - i) for i in (0, 1))
        ess, mean, covariance = (np.concatenate([p[i] for p in parts]) for i in (2, 3, 4))
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

    def _weigh(self, problem: StarProblem, seed: int):
        u, proposal = draw_mixture(problem, seed, self.draws, self.freedom)
        ratio = log_posterior(problem, u) - proposal
        log_weight, khat = smooth_weights(ratio)
        weight = jnp.exp(log_weight)
        mean = jnp.einsum("sn,snm->nm", weight, u)
        offset = u - mean
        covariance = jnp.einsum("sn,snm,snk->nmk", weight, offset, offset)
        ess = 1 / (weight**2).sum(0)
        position = (jnp.arange(self.draws) + 0.5) / self.draws
        pick = jax.vmap(jnp.searchsorted, (1, None), 1)(jnp.cumsum(weight, 0), position)
        shuffle = np.random.default_rng([seed, 31]).permutation(self.draws)
        pick = pick.clip(0, self.draws - 1)[shuffle]
        resampled = jnp.take_along_axis(u, pick[..., None], 0)
        return tuple(np.asarray(x) for x in (resampled, khat, ess, mean, covariance))
