"""Sparse regression of parallaxes of any sign, against oracles in NumPy written apart from it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from bayeslabels.numerics import lognormal
from bayeslabels.numerics.lognormal import cold_start, derivatives, fit_log_linear
from bayeslabels.numerics.sparse import minimise, solve_quadratic, subgradient

log_likelihood = jax.jit(lognormal.log_likelihood)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def integral(y, sigma, eta, s):
    """ln p(y) by the trapezoid rule in z on a grid that resolves the narrowest of both factors."""
    if s == 0:
        return -0.5 * ((y - np.exp(eta)) / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)
    z = np.linspace(-14, 14, 200_001)
    f = np.exp(-0.5 * ((y - np.exp(eta + s * z)) / sigma) ** 2 - 0.5 * z**2) / (2 * np.pi * sigma)
    return np.log(np.trapezoid(f, z))


@pytest.mark.parametrize(("s", "tolerance"), [(0.0, 1e-12), (0.03, 1e-11), (0.1, 1e-9), (0.3, 1e-5), (1.0, 2e-2)])
@pytest.mark.parametrize("signal_to_noise", [0.1, 1.0, 3.0, 10.0, 50.0, 500.0])
def test_likelihood_is_the_integral(s, tolerance, signal_to_noise):
    eta, sigma = 0.4, np.exp(0.4) / signal_to_noise
    y = np.exp(eta) + np.hypot(sigma, s * np.exp(eta)) * np.array([-5.0, -2.0, -1.0, 0.0, 1.0, 3.0])
    y = y[y > -30 * sigma]  # the oracle, which exponentiates, underflows beyond
    expected = [integral(each, sigma, eta, s) for each in y]
    np.testing.assert_allclose(log_likelihood(y, sigma, eta, s), expected, atol=tolerance)


def test_likelihood_is_normalised():
    y = np.linspace(-3, 12, 20_001)
    for sigma, s in ((0.3, 0.2), (0.05, 0.5), (1.0, 0.1)):
        assert np.trapezoid(np.exp(log_likelihood(y, sigma, 0.3, s)), y) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("s", [0.0, 0.1, 0.4])
def test_derivatives(s):
    """The closed forms against finite differences, and autodiff in every argument against them."""
    y, sigma, eta = np.array([-0.3, 0.0, 0.8, 1.0, 4.0]), np.array([0.5, 0.1, 0.01, 0.3, 1.0]), np.linspace(-1, 1, 5)
    h = 1e-4
    out = derivatives(y, sigma, eta, s)
    low, high = log_likelihood(y, sigma, eta - h, s), log_likelihood(y, sigma, eta + h, s)
    np.testing.assert_allclose(out.value, log_likelihood(y, sigma, eta, s), rtol=1e-12)
    np.testing.assert_allclose(out.eta, (high - low) / (2 * h), rtol=1e-4)
    np.testing.assert_allclose(out.eta_eta, -(high - 2 * out.value + low) / h**2, rtol=1e-3, atol=1e-2)
    down, up = (log_likelihood(y - zero, sigma, eta, s) for zero in (-h * sigma, h * sigma))
    np.testing.assert_allclose(out.zero, (up - down) / (2 * h * sigma), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out.zero_zero, -(up - 2 * out.value + down) / (h * sigma) ** 2, rtol=1e-3, atol=1e-2)
    cross = jax.jit(jax.jacfwd(lambda zero: derivatives(y - zero, sigma, eta, s).eta))(0.0)
    np.testing.assert_allclose(out.eta_zero, -cross, rtol=1e-3, atol=1e-2)
    slopes = jax.jit(jax.grad(lambda *a: log_likelihood(*a).sum(), argnums=(0, 1, 2, 3)))
    total = slopes(y, sigma, eta, np.full(5, s))
    np.testing.assert_allclose(total[2], out.eta, rtol=1e-6)
    rise = log_likelihood(y, sigma, eta, s + h) - log_likelihood(y, sigma, eta, s)
    if s > 0:
        rise = 0.5 * (rise + log_likelihood(y, sigma, eta, s) - log_likelihood(y, sigma, eta, s - h))
        np.testing.assert_allclose(total[3], rise / h, rtol=1e-3, atol=1e-4)
    assert all(np.isfinite(each).all() for each in total)


def make(n=400, d=30, used=6, seed=0, signal_to_noise=10.0, s=0.0):
    """x (constant first), y, sigma and the true theta: two wide photometric features, d - 3 sparse pixels."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), rng.normal(size=(n, d - 1))])
    x[:, 2] = x[:, 1] + 0.05 * x[:, 2]
    theta = np.zeros(d)
    theta[:3] = -0.5, -1.2, 0.8
    theta[3 : 3 + used] = rng.choice([-0.3, 0.3], used)
    true = np.exp(x @ theta + s * rng.normal(size=n))
    sigma = np.median(true) / signal_to_noise * np.exp(0.3 * rng.normal(size=n))
    l1 = np.where(np.arange(d) < 3, 0.0, 2 * np.sqrt(np.sum((true / sigma) ** 2)))
    return x, true + sigma * rng.normal(size=n), sigma, theta, l1


def violation(x, y, sigma, theta, l1):
    """Largest distance of the smooth gradient from the subgradient condition, for s = 0."""
    mu = np.exp(x @ theta)
    g = -((y - mu) / sigma**2 * mu) @ x
    each = zip(g, l1, theta, strict=True)
    return max(abs(gj + lj * np.sign(tj)) if tj else max(abs(gj) - lj, 0) for gj, lj, tj in each)


def height(x, y, sigma, theta, l1):
    return 0.5 * (((y - np.exp(x @ theta)) / sigma) ** 2).sum() + (l1 * np.abs(theta)).sum()


@pytest.mark.parametrize("signal_to_noise", [0.5, 3.0, 100.0])
def test_optimum_satisfies_the_subgradient_condition(signal_to_noise):
    x, y, sigma, truth, l1 = make(signal_to_noise=signal_to_noise)
    out = fit_log_linear(x, y, sigma, l1=l1, ridge=np.zeros(30), tolerance=1e-8)
    assert out.converged
    assert violation(x, y, sigma, out.theta, l1) < 1e-5
    assert (out.theta[9:] == 0).mean() > 0.4
    assert height(x, y, sigma, out.theta, l1) < height(x, y, sigma, truth, l1)
    nudged = out.theta + 1e-3 * np.random.default_rng(1).normal(size=(50, 30))
    assert all(height(x, y, sigma, t, l1) > height(x, y, sigma, out.theta, l1) for t in nudged)


def test_more_features_than_stars():
    x, y, sigma, _, l1 = make(n=80, d=300)
    out = fit_log_linear(x, y, sigma, l1=l1, ridge=np.zeros(300))
    assert out.converged
    assert violation(x, y, sigma, out.theta, l1) < 1e-2
    assert (out.theta != 0).sum() < 80


def test_with_scatter_the_optimum_is_stationary():
    x, y, sigma, _, l1 = make(signal_to_noise=20, s=0.1)
    ridge = np.where(np.arange(30) < 3, 0.01, 0.0)
    out = fit_log_linear(x, y, sigma, l1=l1, ridge=ridge, s=0.1, tolerance=1e-8)
    loss = lambda t: -log_likelihood(y, sigma, x @ t, 0.1).sum() + 0.5 * (ridge * t**2).sum()  # noqa: E731
    g = jax.jit(jax.grad(loss))(out.theta)
    assert out.converged
    assert np.abs(subgradient(np.asarray(g), out.theta, l1)).max() < 1e-5


@pytest.mark.parametrize("cut", [False, True])
def test_low_signal_to_noise_is_unbiased_unless_cut(cut):
    """Eq. 2 with every parallax recovers the coefficients; keeping only y > sigma does not (Hogg+19, section 2)."""
    x, y, sigma, truth, _ = make(n=6000, d=6, used=3, signal_to_noise=1.3, seed=5)
    noisy = np.exp(x @ truth) < sigma
    assert 0.25 < noisy.mean() < 0.5
    kept = y > sigma if cut else np.ones(len(y), bool)
    zero = np.zeros(6)
    out = fit_log_linear(x[kept], y[kept], sigma[kept], l1=zero, ridge=zero)
    mu = np.exp(x[kept] @ out.theta)
    covariance = np.linalg.inv((x[kept] * (mu / sigma[kept])[:, None] ** 2).T @ x[kept])
    z = (out.theta - truth) / np.sqrt(np.diag(covariance))
    assert (np.abs(z).max() < 3.5) != cut


def test_cold_start_avoids_the_underflow():
    """At the bad optimum all parallaxes vanish, the objective is chi^2 of zero and the gradient is nothing."""
    x, y, sigma, _, l1 = make(signal_to_noise=1.0)
    bad = np.zeros(30)
    bad[0] = -60.0
    stuck = fit_log_linear(x, y, sigma, l1=l1, ridge=np.zeros(30), start=bad)
    out = fit_log_linear(x, y, sigma, l1=l1, ridge=np.zeros(30))
    assert np.exp(x @ stuck.theta).max() < 1e-20
    assert np.exp(x @ out.theta).max() > 0.1
    assert out.objective < stuck.objective - 50


def test_cold_start_of_pure_noise():
    rng = np.random.default_rng(0)
    x, l1 = np.column_stack([np.ones(50), rng.normal(size=(50, 3))]), np.array([0.0, 1, 1, 1])
    y = -np.abs(rng.normal(size=50))
    assert np.isfinite(cold_start(x, y, np.ones(50), l1, np.zeros(4))).all()


def test_quadratic_with_l1_against_enumeration():
    """All 3^4 sign patterns of the four bound coefficients."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        a = rng.normal(size=(8, 6))
        gram, linear, l1 = a.T @ a, 4 * rng.normal(size=6), np.array([0, 0, 1.0, 2.0, 0.5, 4.0])
        best = np.inf
        for pattern in np.ndindex(3, 3, 3, 3):
            sign = np.array([0.0, 0.0, *np.array(pattern) - 1])
            on = (np.arange(6) < 2) | (sign != 0)
            t = np.zeros(6)
            t[on] = np.linalg.solve(gram[np.ix_(on, on)], (linear - l1 * sign)[on])
            best = min(best, 0.5 * t @ gram @ t - linear @ t + l1 @ np.abs(t))
        t = solve_quadratic(gram, linear, l1, np.zeros(6), 1e-12)
        assert 0.5 * t @ gram @ t - linear @ t + l1 @ np.abs(t) == pytest.approx(best, abs=1e-9)


def test_minimise_at_the_optimum_stays():
    x, y, sigma, _, l1 = make()
    first = fit_log_linear(x, y, sigma, l1=l1, ridge=np.zeros(30), tolerance=1e-8)
    again = fit_log_linear(x, y, sigma, l1=l1, ridge=np.zeros(30), start=first.theta, tolerance=1e-6)
    assert again.iterations == 0
    np.testing.assert_array_equal(again.theta, first.theta)


def test_minimise_says_when_it_has_not_converged():
    x, y, sigma, _, l1 = make()

    def likelihood(eta):
        mu = np.exp(eta)
        return 0.5 * ((y - mu) / sigma) ** 2, mu * (mu - y) / sigma**2, (mu / sigma) ** 2

    out = minimise(x, likelihood, l1, np.zeros(30), np.r_[-1.0, np.zeros(29)], max_iterations=1)
    assert not out.converged


@pytest.fixture(scope="module")
def giants():
    """The shared generator of red giants, seed 3: features, parallax, error."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "cases"
    folder = Path(os.environ.get("BAYESLABELS_CASES", folder))
    if not (folder / "parallax_giants.py").exists():
        pytest.skip(f"no generator in {folder}: set BAYESLABELS_CASES")
    sys.path.insert(0, str(folder))
    import parallax_giants

    made = parallax_giants.make(2000, 1000, 3)
    return made["features"][:2000], made["parallax"][:2000], made["parallax_err"][:2000]


def test_reference_objective(giants):
    """A published L-BFGS code stops at H = 7064.76; the optimum is 7062.5168, with more than 40 % true zeros."""
    features, y, sigma = giants
    l1 = np.where(np.arange(1000) < 9, 0.0, 30.0)
    mean = np.r_[0.0, features[:, 1:].mean(0)]
    out = fit_log_linear(features - mean, y, sigma, l1=l1, ridge=np.zeros(1000))
    theta = np.r_[out.theta[0] - mean @ out.theta, out.theta[1:]]
    assert out.converged
    assert height(features, y, sigma, theta, l1) == pytest.approx(7062.5168, abs=1e-3)
    assert (theta[9:] == 0).mean() > 0.4
    assert violation(features - mean, y, sigma, out.theta, l1) < 0.05
