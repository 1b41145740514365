"""The mean and covariance of coefficients across pixels: evidence, its maximum, and the hyperprior's part in it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

import bayeslabels as bl
from bayeslabels import errors
from bayeslabels.numerics.features import Monomials
from bayeslabels.numerics.hierarchy import Hyperprior, coefficients_given, learn
from bayeslabels.simulate import simulate

N, K = 30, 4


def pixels(n_pixel, seed, sd=(0.5, 0.3, 0.1, 0.05)):
    """Design (N, K), data (L, N), weights (L, N) of pixels whose coefficients are drawn from one Gaussian."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(N, K))
    turn = np.linalg.qr(rng.normal(size=(K, K)))[0]
    root = turn * np.array(sd)
    mean = rng.normal(size=K)
    theta = mean + rng.normal(size=(n_pixel, K)) @ root.T
    weight = 1 / (0.2 * np.exp(0.5 * rng.normal(size=(n_pixel, 1))) * np.ones(N)) ** 2
    y = theta @ phi.T + rng.normal(size=(n_pixel, N)) / np.sqrt(weight)
    return phi, y, weight, mean, root @ root.T


def normal_equations(phi, y, weight):
    return np.einsum("ln,nj,nk->ljk", weight, phi, phi), (weight * y) @ phi


def start():
    return np.zeros(K), np.eye(K)


def test_evidence_is_that_of_a_dense_gaussian():
    phi, y, weight, mean, covariance = pixels(6, 0)
    found = learn(*normal_equations(phi, y, weight), mean, covariance, Hyperprior(10.0, K + 2.0, np.eye(K)), steps=0)
    of_noise = 0.5 * (np.log(weight / (2 * np.pi)) - weight * y**2).sum()
    dense = sum(
        multivariate_normal(phi @ mean, phi @ covariance @ phi.T + np.diag(1 / w)).logpdf(row)
        for row, w in zip(y, weight, strict=True)
    )
    assert found.evidence + of_noise == pytest.approx(dense, rel=1e-10)


def test_coefficients_are_the_posterior_means_of_a_dense_regression():
    phi, y, weight, mean, covariance = pixels(300, 1)
    theta, spread = coefficients_given(*normal_equations(phi, y, weight), mean, covariance)
    for i in (0, 150, 299):
        precision = np.linalg.inv(covariance) + (phi.T * weight[i]) @ phi
        by_hand = np.linalg.solve(precision, np.linalg.solve(covariance, mean) + phi.T @ (weight[i] * y[i]))
        np.testing.assert_allclose(theta[i], by_hand, rtol=1e-8)
        np.testing.assert_allclose(spread[i], np.linalg.inv(precision), rtol=1e-8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_direction_leads_up_from_what_was_learned(seed):
    equations = normal_equations(*pixels(200, seed)[:3])
    prior = Hyperprior(10.0, K + 2.0, 1e-8 * np.eye(K))
    found = learn(*equations, *start(), prior, tolerance=1e-6)
    assert found.converged
    assert found.steps < 60
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(found.covariance)
    for _ in range(20):
        turn = 0.02 * rng.normal(size=(K, K))
        moved = found.mean + 0.02 * root @ rng.normal(size=K), root @ (np.eye(K) + turn + turn.T) @ root.T
        assert learn(*equations, *moved, prior, steps=0).log_density < found.log_density


def test_what_was_simulated_is_found():
    phi, y, weight, mean, covariance = pixels(3000, 3)
    found = learn(*normal_equations(phi, y, weight), *start(), Hyperprior(10.0, K + 2.0, 1e-8 * np.eye(K)))
    assert found.converged
    np.testing.assert_allclose(found.mean, mean, atol=4 * 0.5 / np.sqrt(3000))
    np.testing.assert_allclose(found.covariance, covariance, atol=5 * 0.25 * np.sqrt(2 / 3000))


def test_a_term_that_is_nowhere_loses_its_variance():
    """Expectation-maximisation would take thousands of iterations."""
    equations = normal_equations(*pixels(500, 4, sd=(0.5, 0.3, 0.1, 0.0))[:3])
    found = learn(*equations, *start(), Hyperprior(10.0, K + 2.0, 1e-8 * np.eye(K)))
    assert found.converged
    assert np.linalg.eigvalsh(found.covariance)[0] < 1e-8
    assert found.steps < 60


def test_the_scale_of_the_hyperprior_does_not_matter():
    """Over a factor of a hundred, at an order above what the spectra need: labels move by so little of their errors
    that these would grow by 3 per cent."""
    train, test, truth = simulate(300, 200, seed=5, snr=100)
    exact = train.with_block(labels=bl.Block(truth.training_labels, names=truth.names))
    results = []
    for scale in (1e-5, 1e-4, 1e-3):
        model = bl.Cannon(order=3, label_noise=False, coefficient_prior=bl.priors.Learned(scale=scale))
        results.append(bl.infer(bl.fit(model, exact), test, bl.MAP()))
    for other in (results[0], results[2]):
        off = (other.mean - results[1].mean) / results[1].error
        assert np.sqrt(np.nanmean(off**2)) < 0.25
        np.testing.assert_allclose(np.nanmedian(other.error / results[1].error, 0), 1.0, atol=0.05)


def test_a_scale_that_is_none_is_refused():
    with pytest.raises(errors.BadInput, match="scale"):
        bl.priors.Learned(scale=0.0)


def test_a_start_that_rounding_has_made_singular_is_no_end():
    equations = normal_equations(*pixels(200, 4)[:3])
    singular = np.ones((K, K)) + 1e-17 * np.eye(K)
    singular[0, 1] = singular[1, 0] = 1 + 1e-15
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(singular)
    found = learn(*equations, np.zeros(K), singular, Hyperprior(10.0, K + 2.0, 1e-4 * np.eye(K)))
    usual = learn(*equations, *start(), Hyperprior(10.0, K + 2.0, 1e-4 * np.eye(K)))
    assert found.converged
    assert found.log_density == pytest.approx(usual.log_density, abs=0.1)


@pytest.mark.long
def test_labels_do_not_drift_where_spectra_are_long():
    """Quadratic spectra at order 3: any bend of the labels leaves the flux nearly as it is, and the catalogue hardly
    resists. With a prior learned from some of the pixels alone they were 0.03 to 0.07 off after 40 iterations, and
    went on."""
    rng = np.random.default_rng(0)
    n, n_pixel, m = 250, 6000, 3
    features = Monomials.up_to(2, m)
    theta = rng.normal(0, 0.02, (n_pixel, features.size)) * (rng.random((n_pixel, 1)) < 0.3)
    theta[:, 1 + m :] *= 0.2
    theta[:, 0] = 1.0
    u = rng.normal(size=(n, m))
    flux = features(u) @ theta.T + 0.0105 * rng.normal(size=(n, n_pixel))
    labels = bl.Block(u + 0.05 * rng.normal(size=u.shape), np.full(u.shape, 0.05), names=["a", "b", "c"])
    stars = bl.Stars(labels=labels, flux=bl.Block(flux, np.full(flux.shape, 0.01)))
    posterior = bl.fit(bl.Cannon(order=3, label_noise="joint"), stars, bl.MAP(max_iterations=40))
    off = posterior.data["posterior"]["true_labels"].values[0, 0] - u
    assert posterior.info["converged"]
    assert np.sqrt((off**2).mean(0)).max() < 0.022
