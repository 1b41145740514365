"""What members of a group say together of quantities that they share, some of them perhaps being no members.

    p(q | all) ~ p(q) prod_i [(1 - f) L_i(q) / Z_i + f],   L_i(q) / Z_i = p_i(q | data_i) / p_i(q)

p_i(q | data_i): the posterior of each by itself, under its own prior p_i(q); f: the share of stars that are no members,
whose q is drawn from their own priors, so that their data have the density Z_i. Correlations within a star's posterior
stay: q is all that is shared, at once (as Hogg, Eilers & Rix 2019, fig. 4, for a cluster's parallax).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logsumexp

from .mixture import Mixture, learn

COMPONENTS = 3
"""Gaussians that stand for a star's posterior."""
DRAWS, FREEDOM = 4000, 5
"""Draws of the proposal, a multivariate t."""
TURNS = 6
"""Times that the proposal follows what it found."""


class Together(NamedTuple):
    """mean (Q,), covariance (Q, Q) and draws (S, Q) of what is shared; member (N,): the probability of each star to be
    one; share: effective draws of all, by which to trust it."""

    mean: np.ndarray
    covariance: np.ndarray
    draws: np.ndarray
    member: np.ndarray
    share: float


def together(
    draws: np.ndarray,
    log_prior: Callable[[np.ndarray], np.ndarray],
    outliers: float = 0.1,
    seed: int = 0,
) -> Together:
    """From draws (S, N, Q) of each star's posterior.

    Args:
        log_prior: ln p_i(q) (P, N) at points (P, Q): the stars' own priors, under which the draws were made. That of
            the first star is the prior p(q) of what is shared.
        outliers: f, 0 for none.
    """
    n_draw, n, n_dim = draws.shape
    centre, scale = np.median(draws, (0, 1)), draws.std(0).mean(0) + 1e-12
    parts = [_posterior((draws[:, i] - centre) / scale, seed) for i in range(n)]

    def log_p(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ln p(q | all) (P,), up to a constant, and the log odds (P, N) of each star to be a member."""
        u, prior = (q - centre) / scale, log_prior(q)
        each = np.stack([_log_density(part, u) for part in parts], 1) - np.log(scale).sum() - prior
        if outliers > 0:
            odds = np.log1p(-outliers) - np.log(outliers) + each
            return prior[:, 0] + np.logaddexp(0.0, odds).sum(1), odds
        return prior[:, 0] + each.sum(1), np.full(each.shape, np.inf)

    # a start that one wrong star does not move: of the stars' own means the one that all of them together like best
    means, spread = draws.mean(0), np.stack([np.cov(draws[:, i].T).reshape(n_dim, n_dim) for i in range(n)])
    mean = means[np.argmax(log_p(means)[0])]
    covariance = np.median(spread, 0) * 4 / np.sqrt(n) + 1e-12 * np.diag(scale**2)
    rng = np.random.default_rng([seed, 15487039])
    for turn in range(TURNS):
        factor = np.linalg.cholesky(covariance)
        z = rng.standard_normal((DRAWS, n_dim)) / np.sqrt(rng.chisquare(FREEDOM, (DRAWS, 1)) / FREEDOM)
        q = mean + z @ factor.T
        log_target, odds = log_p(q)
        log_weight = log_target + 0.5 * (FREEDOM + n_dim) * np.log1p((z**2).sum(1) / FREEDOM)
        weight = np.exp(log_weight - logsumexp(log_weight))
        if turn < TURNS - 1:  # softened, so that a few good draws do not make the proposal too narrow
            soft = weight ** max(0.5, min(1.0, turn / (TURNS - 2)))
            soft = soft / soft.sum()
            mean = soft @ q
            off = q - mean
            covariance = (soft[:, None] * off).T @ off + 1e-10 * np.diag(scale**2)
    mean = weight @ q
    off = q - mean
    picked = q[np.searchsorted(np.cumsum(weight), (np.arange(n_draw) + rng.random()) / n_draw).clip(0, DRAWS - 1)]
    found = (weight[:, None] * off).T @ off
    return Together(mean, found, picked, weight @ expit(odds), float(1 / (weight**2).sum() / DRAWS))


def _posterior(u: np.ndarray, seed: int) -> Mixture:
    n, d = u.shape
    return learn(u, np.zeros((n, d, d)), np.ones(u.shape, bool), COMPONENTS, seed=seed)


def _log_density(mixture: Mixture, u: np.ndarray) -> np.ndarray:
    factor = np.linalg.cholesky(mixture.covariance)
    white = np.einsum("kij,pkj->pki", np.linalg.inv(factor), u[:, None] - mixture.mean)
    log_det = np.log(np.einsum("kii->ki", factor)).sum(1)
    norm = np.log(mixture.weight) - log_det - 0.5 * u.shape[1] * np.log(2 * np.pi)
    return np.asarray(logsumexp(norm - 0.5 * (white**2).sum(-1), axis=1))
