"""Gaussian posteriors under sparse priors, against closed forms, quadrature and simulated truth."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.linalg import cho_solve

from bayeslabels.errors import BadInput
from bayeslabels.kinds.parallax.training import refused_in_words
from bayeslabels.numerics.lognormal import log_likelihood
from bayeslabels.numerics.shrinkage import averaged, factorised, fit_posterior, horseshoe, laplace, normal

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make(n=500, d=40, used=5, seed=0, s=0.08, zero=-0.03, error=0.05, feature_error=0.0):
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), rng.normal(size=(n, d - 1))])
    theta = np.r_[-0.3, -0.7, 0.4, rng.choice([-0.15, 0.15], used), np.zeros(d - 3 - used)]
    true = np.exp(x @ theta + s * rng.normal(size=n))
    sigma = error * np.exp(0.3 * rng.normal(size=n))
    seen = x + feature_error * rng.normal(size=x.shape) * (np.arange(d) > 0)
    return seen, true + zero + sigma * rng.normal(size=n), sigma, theta, true


SPARSE = np.arange(40) >= 3
RIDGE = np.where(SPARSE, 10.0, 1e-2)


@pytest.mark.parametrize("point", [0.01, 0.3, 2.0])
def test_horseshoe_ridge_is_the_expectation(point):
    """E[1/l^2 | theta^2] / t^2 under p(l | theta) ~ N(theta | 0, t^2 l^2) / (1 + l^2), by quadrature in ln l."""
    second = np.full(50, point**2)
    ridge = horseshoe(second, slab=1e6)[0]
    scales = np.exp(np.linspace(-12, 12, 1201)) * point
    log_l = np.linspace(-25, 25, 20_001)
    l2 = np.exp(2 * log_l)

    def evidence(t, power):
        log_f = -0.5 * point**2 / (t**2 * l2) - np.log(t) - np.log1p(l2) - 2 * power * log_l
        return np.trapezoid(np.exp(log_f), log_l)

    best = scales[np.argmax([evidence(t, 0) for t in scales])]
    expected = evidence(best, 1) / evidence(best, 0) / best**2
    assert ridge == pytest.approx(expected, rel=0.05)


def test_ridges_of_the_other_priors():
    second = np.array([0.01, 0.04, 0.09])
    np.testing.assert_allclose(normal(second), 1 / second.mean())
    np.testing.assert_allclose(laplace(second), 1 / (0.2 * np.array([0.1, 0.2, 0.3])))
    shrunk = horseshoe(np.r_[np.full(99, 1e-6), 1.0])
    assert shrunk[-1] < 1e-3 * shrunk[0]


def test_averaged_likelihood():
    """Derivatives of the expectation over eta against finite differences of a 60-point rule."""
    y, sigma, eta, s, spread = (np.array(a) for a in ([-0.1, 0.5, 2.0], [0.2, 0.05, 0.02], [-1.0, -0.6, 0.5], 0.1, 0.1))
    s, spread, node, weight = np.full(3, s), np.full(3, spread), *np.polynomial.hermite_e.hermegauss(60)
    h = 1e-4

    def oracle(zero, eta):
        at = eta[:, None] + spread[:, None] * node
        value = log_likelihood((y - zero)[:, None], sigma[:, None], at, s[:, None])
        return np.asarray(value) @ weight / weight.sum()

    out = averaged(0.02, eta, s, y, sigma, spread)
    np.testing.assert_allclose(out.eta, (oracle(0.02, eta + h) - oracle(0.02, eta - h)) / (2 * h), rtol=1e-2, atol=0.05)
    np.testing.assert_allclose(
        out.zero, (oracle(0.02 + h, eta) - oracle(0.02 - h, eta)) / (2 * h), rtol=1e-2, atol=0.05
    )
    cross = (
        oracle(0.02 + h, eta + h) - oracle(0.02 + h, eta - h) - oracle(0.02 - h, eta + h) + oracle(0.02 - h, eta - h)
    )
    np.testing.assert_allclose(out.eta_zero, -cross / (4 * h * h), rtol=0.03, atol=1.0)


def test_precise_parallaxes_give_the_linear_posterior():
    """As sigma -> 0, ln y is Gaussian about x theta: covariance (X' X / s^2 + ridge)^-1, s as REML has it."""
    x, y, sigma, _, true = make(error=1e-5, zero=0.0)
    q = fit_posterior(x, y, sigma, ridge=RIDGE, zero_prior=(0.0, 0.0), tolerance=1e-6, max_iterations=300)
    precision = x.T @ x / q.s**2 + np.diag(RIDGE)
    mean = np.linalg.solve(precision, x.T @ np.log(true) / q.s**2)
    np.testing.assert_allclose(q.mean[:-1], mean, atol=1e-4)
    np.testing.assert_allclose(q.covariance[:-1, :-1], np.linalg.inv(precision), atol=2e-7)
    residual = np.log(true) - x @ mean
    edf = np.trace(np.linalg.solve(precision, x.T @ x / q.s**2))
    assert q.s == pytest.approx(np.sqrt(residual @ residual / (500 - edf)), rel=5e-3)


@pytest.mark.parametrize("prior", [normal, laplace, horseshoe])
def test_new_stars_are_calibrated(prior):
    """z of ln(true) over new stars, coverage within 3.5 binomial sds, zero point and s recovered."""
    x, y, sigma, _, true = make(n=1600, feature_error=0.05, seed=3)
    train, test = slice(0, 600), slice(600, None)
    variance = np.full(x.shape, 0.05**2) * (np.arange(40) > 0)
    q = fit_posterior(
        x[train], y[train], sigma[train], ridge=RIDGE, sparse=SPARSE, prior=prior, variance=variance[train]
    )  # fmt: skip
    eta, sd = q.predict(x[test], variance[test])
    z = (np.log(true[test]) - eta) / sd
    assert q.converged
    assert 0.9 < z.std() < 1.1
    assert abs((np.abs(z) < 1).mean() - 0.683) < 3.5 * np.sqrt(0.683 * 0.317 / 1000)
    assert abs(q.mean[-1] + 0.03) < 3.5 * np.sqrt(q.covariance[-1, -1])
    assert q.s == pytest.approx(0.08, abs=0.03)


def test_sparse_priors_beat_the_normal_one_where_truth_is_sparse():
    x, y, sigma, theta, _ = make(n=150, d=40, used=2, seed=1)
    error = {}
    for prior in (normal, horseshoe):
        q = fit_posterior(x, y, sigma, ridge=RIDGE, sparse=SPARSE, prior=prior)
        error[prior] = np.sqrt(np.mean((q.mean[3:-1] - theta[3:]) ** 2))
    assert error[horseshoe] < 0.8 * error[normal]


def test_coefficients_and_zero_point_are_calibrated():
    """z of the wide coefficients and of the zero point over 20 simulated sets, at S/N near 5."""
    z = []
    for seed in range(20):
        x, y, sigma, theta, _ = make(n=300, d=8, used=5, seed=seed, error=0.2)
        q = fit_posterior(x, y, sigma, ridge=np.full(8, 1e-2), zero_prior=(0.0, 1.0))
        z.append((q.mean - np.r_[theta, -0.03]) / np.sqrt(np.diag(q.covariance)))
    z = np.array(z)
    inside = (np.abs(z) < 1).mean()
    assert abs(inside - 0.683) < 4 * np.sqrt(0.683 * 0.317 / z.size)
    assert (np.abs(z.mean(0)) < 4 / np.sqrt(20)).all()


def test_mean_is_the_optimum_though_noise_depends_on_it():
    """The averaged log density, with s_n^2 = s^2 + E[theta' C_n theta] moving along, is flat at the mean.

    The stars' features differ in noise tenfold: that a smaller theta explains the noisy ones as well must count.
    """
    x, y, sigma, _, _ = make(n=600, d=12, used=4, zero=0.0)
    rng = np.random.default_rng(1)
    noise = np.exp(rng.normal(np.log(0.15), 0.8, (600, 1))) * (np.arange(12) > 2)
    x = x + noise * rng.normal(size=x.shape)
    ridge, sparse = np.where(np.arange(12) > 2, 20.0, 1e-2), np.arange(12) > 2
    q = fit_posterior(
        x, y, sigma, ridge=ridge, sparse=sparse, prior=lambda second: np.full(len(second), 20.0), variance=noise**2,
        zero_prior=(0.0, 0.0), tolerance=1e-6,
    )  # fmt: skip
    theta, covariance = q.mean[:-1], q.covariance[:-1, :-1]
    spread = np.sqrt(((x @ covariance) * x).sum(1))
    node, weight = np.polynomial.hermite_e.hermegauss(30)

    def bound(theta, noisy):
        s = np.sqrt(q.s**2 + noise**2 @ (noisy**2 + sparse * np.diag(covariance)))
        at = (x @ theta)[:, None] + spread[:, None] * node
        expected = np.asarray(log_likelihood(y[:, None], sigma[:, None], at, s[:, None])) @ weight / weight.sum()
        return expected.sum() - 0.5 * (ridge * theta**2).sum()

    def slope(along, moves):
        step = np.zeros(12)
        step[along] = 1e-4
        return (bound(theta + step, theta + moves * step) - bound(theta - step, theta - moves * step)) / 2e-4

    sd = np.sqrt(np.diag(covariance))
    whole = np.array([slope(j, 1.0) for j in range(12)]) * sd
    held = np.array([slope(j, 0.0) for j in range(12)]) * sd
    assert np.abs(whole).max() < 0.002
    assert np.abs(held).max() > 0.03


def test_an_indefinite_information_is_made_definite():
    """As little as needed, with the last one that was; what cannot be mended is refused in words."""
    root = np.random.default_rng(0).normal(size=(5, 4))
    before = np.eye(5) + root @ root.T
    factor, used = factorised(before, lambda: np.full((5, 5), np.nan))
    assert used is before
    np.testing.assert_allclose(cho_solve(factor, before), np.eye(5), atol=1e-9)
    a = np.diag([1.0, 2.0, 3.0, 4.0, -0.5])
    factor, used = factorised(a, lambda: before)
    np.testing.assert_allclose(used, 0.5 * (a + before))
    np.testing.assert_allclose(cho_solve(factor, used), np.eye(5), atol=1e-9)
    for hopeless in (np.full((3, 3), np.nan), -np.eye(3)):
        with pytest.raises(BadInput, match=r"no Gaussian posterior.*outliers=True"), refused_in_words():
            factorised(hopeless, lambda: -np.eye(3))


@pytest.mark.parametrize(("error", "s"), [(0.02, 1.0), (0.3, 0.1)])
def test_errors_hold_where_parallaxes_are_bent_or_small(error, s):
    """Second derivatives that are negative for many stars: sets of 1000 drawn from the model itself, of a wide scatter
    and precise parallaxes, or of parallaxes smaller than their errors, where errors were too small by a factor of 1.4
    while negative ones were left out."""
    chi2, n = [], 12
    for seed in range(n):
        rng = np.random.default_rng(seed)
        x = np.column_stack([np.ones(1000), rng.normal(size=(1000, 4))])
        theta, zero = np.r_[np.log(0.1), 0.5 * rng.normal(size=4)], 0.05 * rng.normal()
        y = np.exp(x @ theta + s * rng.normal(size=1000)) + zero + error * rng.normal(size=1000)
        q = fit_posterior(x, y, np.full(1000, error), ridge=np.full(5, 1e-2))
        assert q.converged
        off = q.mean - np.r_[theta, zero]
        chi2.append(off @ np.linalg.solve(q.covariance, off))
    assert 0.6 < np.sum(chi2) / (6 * n) < 1.5  # 72 degrees of freedom: the sd is 0.17


def test_gross_outliers_end_in_a_posterior():
    """Where the information of the likelihood has no Cholesky factor on the way."""
    x, y, sigma, _, _ = make(n=600, d=40, seed=0)
    y[:20] += 300.0
    q = fit_posterior(x, y, sigma, ridge=RIDGE, sparse=SPARSE, prior=normal)
    assert np.isfinite(q.mean).all()
    assert (np.diag(q.covariance) > 0).all()
