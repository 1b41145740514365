"""First-order photometry of dusty stars: covariances by simulation, reddening by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from bayeslabels.astro.photometry import propagated_covariance, reddening_posterior, to_colours
from bayeslabels.errors import BadInput

N, B, K = 6, 5, 3


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(4)
    root = rng.normal(0, 0.3, (N, K, K))
    return {
        "slope": rng.normal(0, 1, (N, B, K)),
        "label_covariance": root @ np.swapaxes(root, 1, 2),
        "reddening_vector": rng.uniform(0.2, 4, (N, B)),
        "magnitude_error": rng.uniform(0.02, 0.1, (N, B)),
        "residual": rng.normal(0, 1, (N, B)),
    }


def arguments(case):
    return case["slope"], case["label_covariance"], case["reddening_vector"]


def test_covariance_is_that_of_simulated_magnitudes(case):
    rng, n = np.random.default_rng(5), 400_000
    c = propagated_covariance(*arguments(case), 0.1, case["magnitude_error"], 0.2)
    for star in range(2):
        labels = rng.multivariate_normal(np.zeros(K), case["label_covariance"][star], n)
        magnitudes = labels @ case["slope"][star].T + rng.normal(0, case["magnitude_error"][star], (n, B))
        magnitudes += rng.normal(0, 0.1, (n, 1)) * case["reddening_vector"][star] + rng.normal(0, 0.2, (n, 1))
        sd = np.sqrt(np.diag(c[star]))
        np.testing.assert_allclose(np.cov(magnitudes.T) / np.outer(sd, sd), c[star] / np.outer(sd, sd), atol=0.01)


def test_reddening_is_that_of_the_posterior_on_a_grid(case):
    c = propagated_covariance(*arguments(case), 0.0, case["magnitude_error"])
    mean, sd = reddening_posterior(case["residual"], case["reddening_vector"], c, 0.3, 0.5)
    grid = np.linspace(-4, 4, 40_001)
    for star in range(N):
        off = case["residual"][star] - grid[:, None] * case["reddening_vector"][star]
        log_p = -0.5 * (off @ np.linalg.inv(c[star]) * off).sum(1) - 0.5 * ((grid - 0.3) / 0.5) ** 2
        p = np.exp(log_p - log_p.max())
        p /= p.sum()
        assert mean[star] == pytest.approx(p @ grid, abs=1e-9)
        assert sd[star] == pytest.approx(np.sqrt(p @ grid**2 - (p @ grid) ** 2), rel=1e-6)


def test_an_unknown_distance_leaves_the_colours(case):
    c = propagated_covariance(*arguments(case), 0.0, case["magnitude_error"])
    got = reddening_posterior(case["residual"], case["reddening_vector"], c, 0.3, 0.5, modulus_error=np.inf)
    matrix = to_colours(B)[1:]
    only = reddening_posterior(
        case["residual"] @ matrix.T, case["reddening_vector"] @ matrix.T, matrix @ c @ matrix.T, 0.3, 0.5
    )
    np.testing.assert_allclose(got, only, rtol=1e-9)


@pytest.mark.parametrize("modulus_error", [0.0, 0.3])
def test_the_modulus_may_be_in_the_covariance_or_beside_it(case, modulus_error):
    beside = propagated_covariance(*arguments(case), 0.0, case["magnitude_error"])
    within = propagated_covariance(*arguments(case), 0.0, case["magnitude_error"], modulus_error)
    a = reddening_posterior(case["residual"], case["reddening_vector"], beside, 0.3, 0.5, modulus_error)
    np.testing.assert_allclose(
        a, reddening_posterior(case["residual"], case["reddening_vector"], within, 0.3, 0.5), rtol=1e-9
    )


@pytest.mark.parametrize("modulus_error", [0.0, np.inf])
def test_an_unobserved_band_counts_for_nothing(case, modulus_error):
    gone = [0, 3]
    kept = [1, 2, 4]
    error, residual = case["magnitude_error"].copy(), case["residual"].copy()
    error[:, gone], residual[:, 0] = np.inf, np.nan
    c = propagated_covariance(*arguments(case), 0.0, error)
    got = reddening_posterior(residual, case["reddening_vector"], c, 0.3, 0.5, modulus_error)
    few = propagated_covariance(
        case["slope"][:, kept], case["label_covariance"], case["reddening_vector"][:, kept], 0.0, error[:, kept]
    )
    expected = reddening_posterior(residual[:, kept], case["reddening_vector"][:, kept], few, 0.3, 0.5, modulus_error)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_without_any_band_the_prior_is_left_and_without_a_prior_the_data(case):
    c = propagated_covariance(*arguments(case), 0.0, case["magnitude_error"])
    nothing = np.full((N, B), np.nan)
    for modulus_error in (0.0, 0.3, np.inf):
        mean, sd = reddening_posterior(nothing, case["reddening_vector"], c, 0.3, 0.5, modulus_error)
        np.testing.assert_allclose(mean, 0.3)
        np.testing.assert_allclose(sd, 0.5)
    wide = reddening_posterior(case["residual"], case["reddening_vector"], c, 0.0, 1e6)
    none = reddening_posterior(case["residual"], case["reddening_vector"], c, 0.0, np.inf)
    np.testing.assert_allclose(none, wide, rtol=1e-6)


def test_bad_input(case):
    with pytest.raises(BadInput, match=r"\(N, B, K\)"):
        propagated_covariance(case["slope"][0], case["label_covariance"], 1.0, 0.1, case["magnitude_error"])
    with pytest.raises(BadInput, match="infinite modulus_error"):
        propagated_covariance(*arguments(case), 0.1, case["magnitude_error"], np.inf)
    with pytest.raises(BadInput, match=r"\(N, B, B\)"):
        reddening_posterior(case["residual"], 1.0, np.eye(B), 0.0, 1.0)
