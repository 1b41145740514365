"""The mixture of Gaussians of noisy, incomplete vectors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bayeslabels.numerics.mixture import Mixture, learn

TRUE = Mixture(
    np.array([0.7, 0.3]),
    np.array([[0.0, 0.5, -1.0], [3.0, -1.0, 1.0]]),
    np.array(
        [[[1.0, 0.6, 0.0], [0.6, 0.8, 0.1], [0.0, 0.1, 0.3]], [[0.3, 0.0, 0.1], [0.0, 0.5, 0.0], [0.1, 0.0, 1.0]]]
    ),
)


@pytest.fixture(scope="module")
def noisy():
    """True vectors, measured ones with errors up to the spread, a quarter of the numbers missing."""
    rng = np.random.default_rng(3)
    v = TRUE.draw(4000, 5)
    sd = rng.uniform(0.1, 1.0, v.shape)
    x = v + sd * rng.standard_normal(v.shape)
    observed = rng.random(v.shape) > 0.25
    return v, np.where(observed, x, np.nan), sd[:, :, None] ** 2 * np.eye(3), observed


def test_given_is_bayes_theorem(noisy):
    """Against densities and conditional Gaussians written out with SciPy."""
    _, x, noise, observed = noisy
    given = TRUE.given(x, noise, observed)
    for n in (0, 1, 2, 3, int(np.argmin(observed.sum(1)))):
        at = np.flatnonzero(observed[n])
        terms = []
        for k, (w, m, v) in enumerate(zip(*TRUE, strict=True)):
            total = (v + noise[n])[np.ix_(at, at)]
            terms.append(w * multivariate_normal(m[at], total).pdf(x[n, at]) if len(at) else w)
            gain = v[:, at] @ np.linalg.inv(total)
            np.testing.assert_allclose(given.mean[n, k], m + gain @ (x[n, at] - m[at]), atol=1e-10)
            np.testing.assert_allclose(given.covariance[n, k], v - gain @ v[at], atol=1e-10)
        np.testing.assert_allclose(given.weight[n], np.array(terms) / sum(terms), rtol=1e-9)
        np.testing.assert_allclose(given.log_density[n], np.log(sum(terms)), rtol=1e-9, atol=1e-9)


def test_recovers_the_noiseless_mixture(noisy):
    _, x, noise, observed = noisy
    fit = learn(x, noise, observed, 2, seed=0)
    order = np.argsort(-fit.weight)
    np.testing.assert_allclose(fit.weight[order], TRUE.weight, atol=0.03)
    np.testing.assert_allclose(fit.mean[order], TRUE.mean, atol=0.15)
    np.testing.assert_allclose(fit.covariance[order], TRUE.covariance, atol=0.15)


def test_posterior_is_calibrated(noisy):
    v, x, noise, observed = noisy
    given = TRUE.given(x, noise, observed)
    mean, covariance = given.moments()
    z = (v - mean) / np.sqrt(np.einsum("nii->ni", covariance))
    assert np.abs(z.std(0) - 1).max() < 0.04
    draws = given.draw(400, 1)
    rank = (draws < v).mean(0)
    assert np.abs(np.quantile(rank, [0.1, 0.5, 0.9], axis=0) - np.array([[0.1], [0.5], [0.9]])).max() < 0.03
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.3)


def test_a_star_without_data_has_the_population(noisy):
    _, x, noise, _ = noisy
    given = TRUE.given(x[:1], noise[:1], np.zeros((1, 3), bool))
    np.testing.assert_allclose(given.weight[0], TRUE.weight)
    np.testing.assert_allclose(given.mean[0], TRUE.mean)
    np.testing.assert_allclose(given.log_density, 0.0, atol=1e-12)


def test_tails_and_few_stars_in_many_dimensions():
    """What is missing of stars that were not learned from, of Student-t vectors: without tails and pooling too sure."""
    rng = np.random.default_rng(11)
    n, d = 150, 6
    root = np.linalg.cholesky(0.9 * np.ones((d, d)) + 0.1 * np.eye(d))
    x = rng.standard_normal((2000, d)) @ root.T * np.sqrt(6 / rng.chisquare(6, (2000, 1)))
    noise, seen = np.tile(1e-9 * np.eye(d), (2000, 1, 1)), np.ones((2000, d), bool)
    gaps = rng.random((2000 - n, d)) > 0.2
    spread = {}
    for name, settings in {"plain": {}, "tails": {"tails": (1.0, 4.0, 16.0), "pooled": 5.0}}.items():
        fit = learn(x[:n], noise[:n], seen[:n], 8, **settings)
        mean, covariance = fit.given(x[n:], noise[n:], gaps).moments()
        z = ((x[n:] - mean) / np.sqrt(np.einsum("nii->ni", covariance) + 1e-300))[~gaps]
        spread[name] = z.std(), fit.given(x[n:], noise[n:], seen[n:]).log_density.mean()
    assert spread["plain"][0] > 1.3
    assert abs(spread["tails"][0] - 1) < 0.15
    assert spread["tails"][1] > spread["plain"][1]


def test_exact_vectors_are_learned_from_as_noisy_ones_are():
    x = TRUE.draw(300, 2)
    seen = np.ones(x.shape, bool)
    fits = [learn(x, np.tile(v * np.eye(3), (300, 1, 1)), seen, 2, tails=(1.0, 4.0)) for v in (0.9e-5, 1.1e-5)]
    for a, b in zip(*fits, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
