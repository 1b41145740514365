"""Members of a group together: closed forms of Gaussians, coverage, and stars that are no members."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, multivariate_normal, norm

from bayeslabels.numerics import together as group
from bayeslabels.numerics.together import together

PRIOR = multivariate_normal([0.0, 0.0], [[9.0, 0.0], [0.0, 4.0]])


def members(n, rng, true, wrong=0):
    """Draws (S, N, 2) of the posteriors of stars that are measured with correlated errors, and their likelihoods."""
    draws, told = [], []
    for i in range(n):
        a, b, c = rng.uniform(0.2, 0.6), rng.uniform(0.1, 0.3), rng.uniform(-0.8, 0.8)
        noise = np.array([[a**2, a * b * c], [a * b * c, b**2]])
        of = PRIOR.rvs(random_state=rng) if i < wrong else true
        y = rng.multivariate_normal(of, noise)
        precision = np.linalg.inv(noise) + np.linalg.inv(PRIOR.cov)
        covariance = np.linalg.inv(precision)
        mean = covariance @ np.linalg.solve(noise, y)
        draws.append(rng.multivariate_normal(mean, covariance, 600))
        told.append((y, noise))
    return np.stack(draws, 1), told


def each(n):
    return lambda q: np.tile(np.reshape(PRIOR.logpdf(q), (-1, 1)), n)


def exact(told):
    precision = np.linalg.inv(PRIOR.cov) + sum(np.linalg.inv(c) for _, c in told)
    pull = sum(np.linalg.solve(c, y) for y, c in told)
    return np.linalg.solve(precision, pull), np.linalg.inv(precision)


def test_gaussian_members_give_the_product_of_their_likelihoods():
    rng = np.random.default_rng(0)
    draws, told = members(12, rng, np.array([1.0, -0.5]))
    found = together(draws, each(12), outliers=0.0)
    mean, covariance = exact(told)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(found.mean, mean, atol=0.35 * sd.max())
    np.testing.assert_allclose(np.sqrt(np.diag(found.covariance)), sd, rtol=0.15)
    assert abs(np.corrcoef(found.draws.T)[0, 1] - covariance[0, 1] / np.prod(sd)) < 0.2
    assert found.share > 0.3
    np.testing.assert_allclose(found.member, 1.0)
    # one star alone keeps its own posterior
    alone = together(draws[:, :1], each(1), outliers=0.0)
    np.testing.assert_allclose(alone.mean, draws[:, 0].mean(0), atol=0.1 * draws[:, 0].std(0).max())


@pytest.mark.parametrize(
    ("n", "wrong", "many", "components"),
    [
        (10, 0, 20, 1),  # one Gaussian is what such a star's posterior is
        pytest.param(10, 0, 20, group.COMPONENTS, marks=pytest.mark.slow),
        pytest.param(40, 4, 40, group.COMPONENTS, marks=pytest.mark.slow),
    ],
)
def test_groups_hold_the_truth(n, wrong, many, components, monkeypatch):
    monkeypatch.setattr(group, "COMPONENTS", components)
    rng, inside = np.random.default_rng(n), 0
    for seed in range(many):
        true = PRIOR.rvs(random_state=rng)
        draws, _ = members(n, rng, true, wrong)
        found = together(draws, each(n), seed=seed)
        inside += int((np.abs(found.mean - true) < np.sqrt(np.diag(found.covariance))).sum())
    low, high = binom.interval(0.999, 2 * many, 2 * norm.cdf(1.0) - 1)
    assert low <= inside <= high


def test_a_field_star_does_not_drag_the_group():
    rng = np.random.default_rng(5)
    draws, _ = members(15, rng, np.array([1.0, -0.5]))
    with_one = draws.copy()
    with_one[:, 0] += np.array([3.0, 1.5])
    clean = together(draws[:, 1:], each(14))
    found = together(with_one, each(15))
    assert found.member[0] < 0.02
    assert (found.member[1:] > 0.5).sum() >= 13  # one of 14 may be off by chance
    np.testing.assert_allclose(found.mean, clean.mean, atol=0.3 * np.sqrt(np.diag(clean.covariance)).max())
