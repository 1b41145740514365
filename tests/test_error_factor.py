"""A learned factor on stated flux errors: its density, its mode, recovery, and error bars that hold."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from conftest import ln_p
from scipy.optimize import minimize_scalar
from scipy.stats import binom, norm

import bayeslabels as bl
from bayeslabels.errors import CannotDo
from bayeslabels.numerics.error_factor import error_factors, expected_residual2
from bayeslabels.numerics.linalg import outer_pairs, pack
from bayeslabels.results.star_posterior import Flags

NAMES = ("TEFF", "LOGG")
CENTRE, SPREAD = np.array([5000.0, 3.0]), np.array([300.0, 0.5])
N_PIXEL = 80


def survey(n, factor=1.0, seed=0, stated=0.01, missing=0.0):
    """Linear spectra with noise `factor` times as large as stated and a scatter of 0.003; and the true labels."""
    rng = np.random.default_rng(seed)
    theta = np.random.default_rng(1).normal(size=(N_PIXEL, 3)) * [0.1, 0.03, 0.03] + [1.0, 0.0, 0.0]
    u = rng.normal(size=(n, 2))
    error = stated * np.random.default_rng(2).uniform(0.5, 2.0, (n, N_PIXEL))
    noise = np.asarray(factor).reshape(-1, 1) * error * rng.normal(size=error.shape)
    flux = np.column_stack([np.ones(n), u]) @ theta.T + noise + 0.003 * rng.normal(size=error.shape)
    flux[rng.random(flux.shape) < missing] = np.nan
    truth = CENTRE + SPREAD * u
    labels = bl.Block(truth, names=NAMES, unit=("K", "dex"))
    return bl.Stars(labels=labels, flux=bl.Block(flux, error)), truth


@pytest.fixture(scope="module")
def trained():
    return bl.fit(bl.Cannon(order=1, label_noise=False), survey(400)[0])


def test_the_mode_is_that_of_the_density():
    rng = np.random.default_rng(0)
    residual2, variance, scatter2 = rng.chisquare(1, (3, 50)), rng.uniform(0.2, 2.0, (3, 50)), rng.uniform(0, 0.5, 50)
    residual2[1, ::3] = np.nan

    def loss(ln_f, rows):
        total = np.exp(2 * ln_f) * variance[rows] + scatter2
        terms = np.where(np.isnan(residual2[rows]), 0.0, np.log(total) + residual2[rows] / total)
        return 0.5 * terms.sum() + 0.5 * ln_f**2

    ln_f, sd = error_factors(residual2, variance, scatter2)
    for n in range(3):
        best = minimize_scalar(loss, bounds=(-3, 3), args=(n,), method="bounded", options={"xatol": 1e-9}).x
        assert ln_f[n] == pytest.approx(best, abs=1e-6)
    together, sd_together = error_factors(residual2, variance, scatter2, together=True)
    best = minimize_scalar(loss, bounds=(-3, 3), args=(slice(None),), method="bounded", options={"xatol": 1e-9}).x
    np.testing.assert_allclose(together, best, atol=1e-6)
    assert (sd_together < sd).all()


def test_the_residual_is_expected_over_labels_and_coefficients():
    rng = np.random.default_rng(1)
    phi = rng.multivariate_normal([1.0, 0.3], [[0.2, 0.1], [0.1, 0.3]], 200_000)
    theta = rng.multivariate_normal([0.5, -0.2], [[0.05, 0.0], [0.0, 0.1]], 200_000)
    sampled = ((1.7 - (phi * theta).sum(1)) ** 2).mean()
    second = outer_pairs(phi).mean(0)[None]
    covariance = np.cov(theta.T)[None]
    found = expected_residual2(np.array([[1.7]]), phi.mean(0)[None], second, theta.mean(0)[None], covariance)
    assert found[0, 0] == pytest.approx(sampled, rel=0.02)
    assert pack(covariance).shape == (1, 3)


@pytest.mark.parametrize("of", ["star", "survey"])
def test_the_program_has_the_density_of_its_equation(of):
    stars, _ = survey(6)
    with jax.enable_x64(True):
        model = bl.Cannon(order=1, label_noise=False, flux_error_factor=of).bind(stars)
        one = bl.Cannon(order=1, label_noise=False).bind(stars)
        rng = np.random.default_rng(0)
        sites = {
            "coefficients": rng.normal(size=(N_PIXEL, 3)), "coefficients_mean": np.zeros(3),
            "coefficients_covariance": np.eye(3), "scatter": np.full(N_PIXEL, 0.1), "population_mean": np.zeros(2),
            "population_covariance": np.eye(2),
        }  # fmt: skip
        factor = rng.uniform(0.5, 2.0, 6) if of == "star" else np.array(1.7)
        whole = ln_p(model, stars, sites | {"flux_error_factor": factor})
        wide = stars.with_block(flux=bl.Block(stars.flux.value, stars.flux.error * np.reshape(factor, (-1, 1))))
        plain = ln_p(one, wide, sites)
    prior = norm.logpdf(np.log(factor)) - np.log(factor)
    assert whole - plain == pytest.approx(float(np.sum(prior)), abs=1e-8)


def test_wrong_errors_are_found_and_error_bars_hold(trained):
    """Coverage of 600 stars of which the noise is twice as large as stated, a tenth of the pixels missing."""
    stars, truth = survey(600, factor=2.0, seed=7, missing=0.1)
    spectra = stars.drop("labels")
    plain, learned = bl.infer(trained, spectra), bl.infer(trained, spectra, flux_error_factor="star")
    assert ((plain.mean - truth) / plain.error).std() > 1.5
    z = (learned.mean - truth) / learned.error
    low, high = binom(z.size, 0.6827).interval(0.999)
    assert low < (np.abs(z) < 1).sum() < high
    table = learned.table()
    factor, error = table["flux_error_factor"], table["flux_error_factor_error"]
    off = np.log(factor / 2.0) / (error / factor)
    assert abs(off.mean()) < 0.3
    assert 0.85 < off.std() < 1.15
    assert (learned.flags == 0).mean() > 0.97


def test_errors_that_are_right_stay(trained):
    spectra = survey(200, seed=8)[0].drop("labels")
    plain, learned = bl.infer(trained, spectra), bl.infer(trained, spectra, flux_error_factor="star")
    assert abs(np.median(learned.table()["flux_error_factor"]) - 1) < 0.05
    assert (np.abs(learned.mean - plain.mean) / plain.error).max() < 0.5


@pytest.mark.parametrize("of", ["star", "survey"])
def test_training_finds_the_factor_beside_the_scatter(of, tmp_path):
    """Half of the pixels' variance is a scatter of the pixel; S/N differs from star to star."""
    stated = 0.01 * np.random.default_rng(3).uniform(0.2, 1.0, (300, 1))
    factor = np.random.default_rng(4).uniform(1.0, 3.0, 300) if of == "star" else np.full(300, 1.6)
    stars, _ = survey(300, factor, stated=stated)
    model = bl.Cannon(order=1, label_noise=False, flux_error_factor=of)
    posterior = bl.fit(model, stars)
    assert posterior.info["converged"]
    found = posterior.data["posterior"]["flux_error_factor"].values[0, 0]
    if of == "star":
        assert np.corrcoef(found, factor)[0, 1] > 0.9
        loud = stated[:, 0] > 0.007  # of the others the scatter hides it
        assert abs(np.median((found / factor)[loud]) - 1) < 0.05
    else:
        assert found == pytest.approx(1.6, rel=0.03)
    assert np.median(posterior.moments.scatter) == pytest.approx(0.003, rel=0.1)
    again = bl.load(posterior.save(tmp_path / "model.nc"))
    spectra, truth = survey(400, 1.6, seed=9)
    results = [bl.infer(x, spectra.drop("labels")) for x in (posterior, again)]
    np.testing.assert_array_equal(results[0].mean, results[1].mean)
    z = (results[0].mean - truth) / results[0].error
    low, high = binom(z.size, 0.6827).interval(0.999)
    assert low < (np.abs(z) < 1).sum() < high


def test_a_star_is_the_same_in_any_company(trained):
    spectra = survey(30, factor=2.0, seed=5)[0].drop("labels")
    whole = bl.infer(trained, spectra, flux_error_factor="star")
    part = bl.infer(trained, spectra[[17, 3]], flux_error_factor="star")
    np.testing.assert_allclose(part.mean, whole.mean[[17, 3]], rtol=1e-9)
    np.testing.assert_allclose(part.error, whole.error[[17, 3]], rtol=1e-9)


def test_a_star_without_data_and_spectra_without_errors(trained):
    stars = survey(5, seed=6)[0].drop("labels")
    flux = stars.flux.value.copy()
    flux[2] = np.nan
    result = bl.infer(trained, bl.Stars(flux=bl.Block(flux, stars.flux.error)), flux_error_factor="star")
    assert result.flags[2] & Flags.NO_DATA
    assert np.isnan(result.table()["flux_error_factor"][2])
    bare = bl.infer(trained, bl.Stars(flux=bl.Block(stars.flux.value)), flux_error_factor="star")
    assert "flux_error_factor" not in bare.table().colnames


def test_what_cannot_be_is_said(trained):
    spectra = survey(5)[0]
    with pytest.raises(bl.BadInput, match="flux_error_factor='all'"):
        bl.fit(bl.Cannon(flux_error_factor="all"), spectra)
    with pytest.raises(bl.BadInput, match="as in training"):
        bl.infer(trained, spectra, flux_error_factor="survey")
    with pytest.raises(CannotDo, match="Gibbs"):
        bl.fit(bl.Cannon(order=1, label_noise="joint", flux_error_factor="star"), survey(40)[0], bl.Gibbs())
    with pytest.raises(CannotDo, match="flux_error_factor"):
        bl.fit(bl.Cannon(order=1, label_noise=False, flux_error_factor="star"), survey(40)[0], bl.SVI())
