"""The population of latents: a mixture of Gaussians, learned from what the data say of every star.

    u_n ~ sum_c w_c N(mean_c, V_c)

A population of another shape than that of the stars pulls at the latents of all of them, and where coefficients
follow, the labels' system bends. Expectation-maximisation as in extreme deconvolution (Bovy, Hogg & Roweis 2011), of
stars whose data are Gaussian about the mode that they have under one Gaussian, of the mixture's mean and covariance.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .linalg import Array, inverse_psd
from .mixture import Given, Mixture, learn
from .modes import Modes

MOST = 6
"""Components, at most."""
ITERATIONS, GAIN = 50, 0.1
"""Iterations of a number of components that is tried, at most, and the gain in log density, in nats, that ends them."""


class PopulationSums(NamedTuple):
    """Sums over stars of the components' share of each: share (C,), of E[u] (C, P), of E[u u'] (C, P, P)."""

    share: Array
    first: Array
    second: Array


class LogRatio(NamedTuple):
    """ln of the mixture's density over that of the Gaussian of its mean and covariance, as arrays: of the components,
    and of that Gaussian, log_weight (C,) with the determinants, mean (C, P), precision (C, P, P)."""

    parts: tuple[Array, Array, Array]
    whole: tuple[Array, Array, Array]

    def __call__(self, u: Array) -> Array:
        """Of points u (S, P), up to a constant."""

        def log_density(log_weight: Array, mean: Array, precision: Array) -> Array:
            offset = u[:, None] - mean
            z2 = (jnp.einsum("scp,cpq->scq", offset, precision) * offset).sum(-1)
            return jax.scipy.special.logsumexp(log_weight - 0.5 * z2, axis=1)

        return log_density(*self.parts) - log_density(*self.whole)


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Mixture:
    """Of one component."""
    return Mixture(np.ones(1), mean[None], covariance[None])


def total(mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """Mean (P,) and covariance (P, P) of the whole."""
    mean = mixture.weight @ mixture.mean
    offset = mixture.mean - mean
    spread = mixture.covariance + offset[:, :, None] * offset[:, None, :]
    return mean, np.einsum("c,cpq->pq", mixture.weight, spread)


def moved(mixture: Mixture, slope: np.ndarray, offset: np.ndarray) -> Mixture:
    """Of slope u + offset."""
    return Mixture(mixture.weight, mixture.mean @ slope.T + offset, slope @ mixture.covariance @ slope.T)


def log_ratio(mixture: Mixture) -> LogRatio | None:
    """None: the mixture is that Gaussian."""
    if len(mixture.weight) == 1:
        return None

    def arrays(mixture: Mixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        log_weight = np.log(mixture.weight) - 0.5 * np.linalg.slogdet(mixture.covariance)[1]
        return log_weight, mixture.mean, np.asarray(inverse_psd(mixture.covariance))

    return LogRatio(arrays(mixture), arrays(gaussian(*total(mixture))))


def conditioned(mixture: Mixture, mean: np.ndarray, covariance: np.ndarray, whole: Mixture | None = None) -> Given:
    """The components given each star's data, from its posterior N(mean, covariance), (N, P) and (N, P, P), under the
    Gaussian `whole`, by default that of the mixture's mean and covariance; log_density: what the mixture adds to ln
    p(data_n)."""
    n = len(mean)
    if len(mixture.weight) == 1:
        return Given(np.ones((n, 1)), mean[:, None], covariance[:, None], np.zeros(n))
    whole = whole or gaussian(*total(mixture))
    data = _likelihood(whole, mean, covariance)
    given = _given(mixture, *data)
    return given._replace(log_density=given.log_density - _given(whole, *data).log_density)


def _likelihood(whole: Mixture, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision (N, P, P), at least 0, and information (N, P) of the data alone; whole: the one component."""
    prior, precision = np.linalg.inv(whole.covariance[0]), np.linalg.inv(covariance)
    value, vector = np.linalg.eigh(precision - prior)
    at_least = (vector * np.maximum(value, 0.0)[:, None]) @ np.swapaxes(vector, 1, 2)
    return at_least, (precision @ mean[..., None])[..., 0] - prior @ whole.mean[0]


def _given(mixture: Mixture, precision: np.ndarray, information: np.ndarray) -> Given:
    """Given Gaussian data of this precision (N, P, P) and information (N, P); ln p up to a constant of each star."""
    own = np.asarray(inverse_psd(mixture.covariance))
    right = (own @ mixture.mean[..., None])[..., 0]
    both, along = precision[:, None] + own, information[:, None] + right
    spread = np.linalg.inv(both)
    centre = (spread @ along[..., None])[..., 0]
    terms = np.log(mixture.weight) + 0.5 * np.linalg.slogdet(own)[1] - 0.5 * (right * mixture.mean).sum(-1)
    terms = terms + 0.5 * ((along * centre).sum(-1) - np.linalg.slogdet(both)[1])
    top = terms.max(1)
    share = np.exp(terms - top[:, None])
    sum_of = share.sum(1)
    return Given(share / sum_of[:, None], centre, spread, top + np.log(sum_of))


def modes_given(mixture: Mixture, modes: Modes) -> Modes:
    """Modes under the Gaussian of the mixture's mean and covariance, each as the mean and covariance that the mixture
    gives it."""
    if len(mixture.weight) == 1:
        return modes
    location, covariance, objective, converged = (np.array(x) for x in modes)
    for j in range(len(location)):
        there = np.isfinite(objective[j]) & np.isfinite(location[j]).all(1) & np.isfinite(covariance[j]).all((1, 2))
        if there.any():
            given = conditioned(mixture, location[j][there], covariance[j][there])
            before = np.linalg.slogdet(covariance[j][there])[1]
            location[j][there], covariance[j][there] = given.moments()
            objective[j][there] += 0.5 * (np.linalg.slogdet(covariance[j][there])[1] - before) - given.log_density
    return Modes(location, covariance, objective, converged)


def sums_of(given: Given, counts: np.ndarray) -> PopulationSums:
    """Of the stars that count (N,)."""
    share = given.weight * counts[:, None]
    second = np.einsum("nc,ncpq->cpq", share, given.covariance, optimize=True)
    second += np.einsum("nc,ncp,ncq->cpq", share, given.mean, given.mean, optimize=True)
    return PopulationSums(share.sum(0), np.einsum("nc,ncp->cp", share, given.mean), second)


def learned(sums: PopulationSums) -> Mixture:
    """The mixture of C components given these: w ~ Dirichlet(1), V_c ~ InverseWishart(P + 2, I / C^2), w at its mean
    and V_c at that of its inverse, which is what a star's latents take of what is not known exactly."""
    share, first, second = (np.asarray(x) for x in sums)
    c, p = first.shape
    mean = first / np.maximum(share, 1e-12)[:, None]
    scatter = second - share[:, None, None] * mean[:, :, None] * mean[:, None, :]
    covariance = (scatter + np.eye(p) / c**2) / (share + p + 2)[:, None, None]
    return Mixture((share + 1) / (share.sum() + c), mean, covariance)


def choose(mean: np.ndarray, covariance: np.ndarray, seed: int = 0) -> tuple[Mixture, np.ndarray]:
    """How many components stars of posteriors N(mean, covariance), (N, P) and (N, P, P), under one Gaussian ask for, by
    the Bayesian information criterion (Schwarz 1978); and by how much, in nats, each number that was tried is better
    than one, half the criterion's penalty taken off."""
    n, p = mean.shape
    everyone = np.ones(n)
    one = learned(sums_of(Given(np.ones((n, 1)), mean[:, None], covariance[:, None], np.zeros(n)), everyone))
    data = _likelihood(one, mean, covariance)
    alone, best, leads = _given(one, *data).log_density.sum(), one, [0.0]
    for c in range(2, MOST + 1):
        found, now = split(mean, c, seed), -np.inf
        if len(found.weight) < c:
            break
        for _ in range(ITERATIONS):
            before, given = now, _given(found, *data)
            now = float(given.log_density.sum() - alone)
            if now - before < GAIN:
                break
            found = learned(sums_of(given, everyone))
        leads.append(now - 0.5 * np.log(n) * (c - 1) * (1 + p + p * (p + 1) / 2))
        if leads[-1] <= max(leads[:-1]):
            break
        best = found
    return best, np.array(leads)


def split(u: np.ndarray, n_component: int, seed: int = 0) -> Mixture:
    """A mixture of so many components, or as many as they are enough for, that points u (N, P) look like."""
    n, p = u.shape
    return learn(u, np.zeros((n, p, p)), np.ones((n, p), bool), n_component, seed=seed, iterations=ITERATIONS)
