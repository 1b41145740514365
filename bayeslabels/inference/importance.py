"""Importance: exact label posteriors from weighted Laplace draws, with a diagnostic per star."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..numerics.linalg import in_float64
from ..numerics.modes import Modes
from ..numerics.own_variates import other_keys
from ..numerics.psis import smooth_weights
from ..progress import bar
from .base import Inference, StarDraws
from .starwise import StarProblem, draw_mixture, in_passing

KHAT_LIMIT = 0.7
"""Pareto k-hat above which importance weights are not to be trusted (Vehtari+24)."""


ROUNDS = 6
"""Further proposals, each learned from the draws before, of stars whose k-hat is above the limit."""
COMPONENTS = 24
BREADTH = 0.6
"""Their components, and the breadth of these in sd of the draws."""


class Weighted(NamedTuple):
    """Draws of equal weight (S, N, M) and what is known beside them (S, N, ...), k-hat and effective sample size (N,),
    mean (N, M) and covariance (N, M, M)."""

    u: np.ndarray
    beside: Any
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

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, bl.Importance(draws=200), progress=False)
        >>> bool((result.stars["khat"] < 0.7).all())
        True
    """

    draws: int = 1000
    starts: int = 4
    freedom: int = 8
    rescue: bool = True

    def _weighted(self, problem: StarProblem, keys: np.ndarray, progress: bool | None, what: str = "") -> Weighted:
        n, size = problem.n_star, problem.at_once
        order, parts = np.random.default_rng(31).permutation(self.draws), []
        with bar(n, f"test step, importance sampling{what}", progress) as shown:
            for start in range(0, n, size):
                rows = np.minimum(np.arange(start, start + size), n - 1)
                kept = min(size, n - start)
                part = problem.select(rows)
                draws, proposal = draw_mixture(part, keys[rows], self.draws, self.freedom)
                log_p, beside = in_passing(part, draws)
                found = draws, beside, log_p, proposal
                parts.append(_weigh(order, *jax.tree.map(lambda x, k=kept: np.asarray(x)[:k], found)))
                shown.update(kept)
        out = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        by_draw = jax.tree.map(lambda x: np.moveaxis(x, 1, 0), (out.u, out.beside))
        return out._replace(u=by_draw[0], beside=by_draw[1])

    @in_float64
    def infer(self, problem: StarProblem, keys: np.ndarray, progress: bool | None) -> StarDraws:
        n = problem.n_star
        u, beside, khat, ess, mean, covariance = self._weighted(problem, keys, progress)
        failed = ~np.asarray(problem.modes.converged[0])
        for round in range(ROUNDS):
            high = np.flatnonzero((khat > KHAT_LIMIT) & ~failed)
            if not len(high):
                break
            nearer, what = _nearer(problem.select(high), u[:, high], round), f", round {round + 2}"
            again = self._weighted(nearer, other_keys(keys[high], 611953 + round), progress, what)
            better = np.flatnonzero(again.khat < khat[high])
            rows = high[better]
            _put((u, beside), rows, jax.tree.map(lambda x, i=better: x[:, i], (again.u, again.beside)))
            khat[rows], ess[rows] = again.khat[better], again.ess[better]
            mean[rows], covariance[rows] = again.mean[better], again.covariance[better]
        rescued = np.zeros(n, bool)
        high = np.flatnonzero((khat > KHAT_LIMIT) & ~failed)
        if self.rescue and len(high):
            from .nuts import NUTS

            sampled = NUTS(chains=4, draws=-(-self.draws // 4)).infer(problem.select(high), keys[high], progress)
            draws = sampled.u.reshape(-1, len(high), u.shape[-1])[: self.draws]
            rescued[high] = True
            rest = jax.tree.map(lambda x: np.moveaxis(np.asarray(x), 1, 0), _passing(problem.select(high), draws))
            _put((u, beside), high, (draws, rest))
            mean[high] = draws.mean(0)
            covariance[high] = np.einsum("snm,snk->nmk", draws - draws.mean(0), draws - draws.mean(0)) / len(draws)
        per_star = {"khat": khat, "ess": ess, "rescued": rescued}
        beside = jax.tree.map(lambda x: x[None], beside)
        return StarDraws(u[None], failed, mean, covariance, per_star, beside)


def _put(into: Any, rows: np.ndarray, values: Any) -> None:
    for x, y in zip(jax.tree.leaves(into), jax.tree.leaves(values), strict=True):
        x[:, rows] = y


def _passing(problem: StarProblem, u: np.ndarray) -> Any:
    """`in_passing` of draws (S, N, M), in batches of the size that is compiled already: a pytree of (N, S, ...)."""
    n, parts = problem.n_star, []
    for start in range(0, n, problem.at_once):
        rows = np.minimum(np.arange(start, start + problem.at_once), n - 1)
        _, beside = in_passing(problem.select(rows), jnp.asarray(np.moveaxis(u[:, rows], 1, 0)))
        parts.append(jax.tree.map(lambda x, k=n - start: np.asarray(x)[:k], beside))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _nearer(problem: StarProblem, u: np.ndarray, round: int) -> StarProblem:
    """With components at some of the draws u (S, N, M), narrower than these, in the place of the modes.

    A proposal that follows a bent or bounded posterior where a Gaussian cannot (West 1993).
    """
    pick = np.random.default_rng([round, 611953]).choice(len(u), COMPONENTS, replace=False)
    off = u - u.mean(0)
    covariance = np.einsum("snm,snk->nmk", off, off) / len(u)
    covariance += 1e-6 * np.eye(u.shape[2]) * np.einsum("nmm->n", covariance)[:, None, None]
    shape = (COMPONENTS, u.shape[1])
    spread = np.broadcast_to(BREADTH**2 * covariance, (COMPONENTS, *covariance.shape))
    modes = Modes(u[pick], spread, np.zeros(shape), np.ones(shape, bool))
    return dataclasses.replace(problem, modes=modes)


def _weigh(order: np.ndarray, u: np.ndarray, beside: Any, log_p: np.ndarray, proposal: np.ndarray) -> Weighted:
    """Of N stars, from draws (N, S, M), what is beside them, ln p and the proposal's (N, S): draws resampled to equal
    weight, at even shares of it, then put into this order (S,); still with the stars first."""
    n, s = log_p.shape
    log_weight, khat = smooth_weights(log_p - proposal)
    weight = np.exp(log_weight)
    mean = (weight[:, None] @ u)[:, 0]
    off = u - mean[:, None]
    covariance = np.stack([(w * x.T) @ x for w, x in zip(weight, off, strict=True)])
    upto = np.floor(s * np.nan_to_num(np.cumsum(weight, 1)) + 0.5).clip(0, s).astype(int)
    upto[:, -1] = s
    pick = np.repeat(np.arange(n * s), np.diff(upto, axis=1, prepend=0).ravel()).reshape(n, s)[:, order]
    u, beside = jax.tree.map(lambda x: x.reshape(n * s, *x.shape[2:]).take(pick, 0), (u, beside))
    return Weighted(u, beside, khat, 1 / (weight**2).sum(1), mean, covariance)
