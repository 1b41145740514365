"""What else varies from star to star: the templates, the integral over them, and the labels that come out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ln_p
from scipy.interpolate import CubicSpline
from scipy.stats import binom, multivariate_normal, norm

import bayeslabels as bl
from bayeslabels import Cannon, errors
from bayeslabels.kinds.spectra import nuisances
from bayeslabels.kinds.spectra.quartic import prepare
from bayeslabels.numerics.compress import compress
from bayeslabels.numerics.linalg import in_float64
from bayeslabels.numerics.nuisance import compress_nuisances, marginalise

L, SPEED_OF_LIGHT = 120, 299792.458
WAVELENGTH = 5000 * np.exp(4e-5 * np.arange(L))
NAMES, CENTRE, SPREAD = ("TEFF", "LOGG"), np.array([5000.0, 3.0]), np.array([300.0, 0.5])


class Pixels:
    n_pixel, coordinate = L, WAVELENGTH


def lines(width=3.0, seed=1):
    """A normalised spectrum (L,) of resolved lines."""
    rng = np.random.default_rng(seed)
    x, depth = rng.uniform(8, L - 8, 9), rng.uniform(0.1, 0.5, 9)
    return 1 - (depth * np.exp(-0.5 * ((np.arange(L)[:, None] - x) / width) ** 2)).sum(1)


def survey(n, seed, disturb=None, error=0.004):
    """Stars whose spectra are quadratic in two labels; disturb(flux (N, L), rng): what else happens to them."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(-1.5, 1.5, (n, 2))
    shape = np.random.default_rng(0)
    base, bumps = lines(), np.stack([1 - lines(3.0, 2), 1 - lines(3.0, 3), 0.2 * (1 - lines(3.0, 4))])
    bumps *= shape.uniform(0.15, 0.3, (3, 1))
    flux = base + u @ bumps[:2] + (u[:, :1] * u[:, 1:]) * bumps[2]
    if disturb is not None:
        flux = disturb(flux, rng)
    flux = flux + error * rng.normal(size=flux.shape)
    flux[rng.random(flux.shape) < 0.03] = np.nan
    block = bl.Block(flux, np.full(flux.shape, error), coords={"lambda": WAVELENGTH})
    return bl.Stars(labels=bl.Block(CENTRE + SPREAD * u, names=NAMES), flux=block), CENTRE + SPREAD * u


def wiggles(sd, degree=4):
    def disturb(flux, rng):
        curves = np.polynomial.legendre.legvander(np.linspace(-1, 1, L), degree).T
        curves = curves / np.sqrt((curves**2).mean(1, keepdims=True) * (degree + 1))
        return flux * (1 + sd * rng.normal(size=(len(flux), degree + 1)) @ curves)

    return disturb


def shifted(sd):
    def disturb(flux, rng):
        return moved(flux, rng.normal(0, sd, len(flux)))

    return disturb


def moved(flux, velocity):
    places = WAVELENGTH * (1 - velocity[:, None] / SPEED_OF_LIGHT)
    return np.stack([CubicSpline(WAVELENGTH, f)(at) for f, at in zip(flux, places, strict=True)])


@pytest.fixture(scope="module")
def posterior():
    return bl.fit(Cannon(order=2, label_noise=False), survey(300, 0)[0], seed=0)


def test_a_continuum_has_the_root_mean_square_that_was_asked_for():
    shapes = nuisances.Continuum(0.01, degree=4).shapes(Pixels, np.ones((L, 1)))[:, :, 0]
    assert shapes.shape == (5, L)
    assert np.sqrt((shapes**2).sum(0).mean()) == pytest.approx(0.01, rel=0.05)


def test_a_velocity_moves_the_spectrum():
    spectrum, v = lines(), 0.5
    moved = CubicSpline(WAVELENGTH, spectrum)(WAVELENGTH * (1 - v / SPEED_OF_LIGHT))
    template = nuisances.Velocity(2.0).shapes(Pixels, spectrum[:, None])[0, :, 0]
    np.testing.assert_allclose(spectrum + template * v / 2.0, moved, atol=2e-4)


def test_a_broadening_convolves_the_spectrum():
    spectrum, sigma = lines(), 0.6
    x = np.arange(-6, 7)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    wide = np.convolve(spectrum, kernel / kernel.sum(), mode="same")
    template = nuisances.Broadening(0.5).shapes(Pixels, spectrum[:, None])[0, :, 0]
    inside = slice(8, -8)
    off = spectrum + template * sigma**2 / 0.25 - wide
    assert np.abs(off[inside]).max() < 0.12 * np.abs(spectrum - wide)[inside].max()


def test_templates_are_added_whatever_the_spectrum():
    array = np.stack([np.linspace(0, 1, L), np.cos(np.arange(L))])
    shapes = nuisances.Templates(array, (0.1, 0.2)).shapes(Pixels, np.random.default_rng(0).normal(size=(L, 3)))
    np.testing.assert_allclose(shapes[:, :, 0], array * np.array([[0.1], [0.2]]))
    np.testing.assert_allclose(shapes[:, :, 1:], 0.0)


@in_float64
def test_the_integral_is_that_of_a_dense_gaussian():
    """Differences in ln p(flux | u), and the posterior of v, of three stars with missing pixels."""
    rng = np.random.default_rng(2)
    k, q, n, n_pixel = 3, 2, 3, 1100  # more than a tile
    theta, templates = rng.normal(size=(n_pixel, k)), 0.3 * rng.normal(size=(q, n_pixel, k))
    value, error = rng.normal(size=(n, n_pixel)), rng.uniform(0.5, 1.5, (n, n_pixel))
    value[rng.random(value.shape) < 0.1] = np.nan
    scatter = rng.uniform(0.1, 0.3, n_pixel)
    scatter[5] = np.nan
    at = rng.normal(size=(n, k))
    sums = compress_nuisances(value, error, theta, scatter, templates, at)
    found = marginalise(compress(value, error, theta, scatter, constant=True), sums)
    for star in range(n):
        ok = np.isfinite(value[star]) & np.isfinite(scatter)
        t = np.einsum("qlk,k->lq", templates[:, ok], at[star])
        noise = np.diag(error[star, ok] ** 2 + scatter[ok] ** 2)
        phi = rng.normal(size=k)
        dense = multivariate_normal(theta[ok] @ phi, noise + t @ t.T).logpdf(value[star, ok])
        mine = found.log_likelihood(jnp.broadcast_to(jnp.asarray(phi), (n, k)))[star]
        assert float(mine) == pytest.approx(dense, rel=1e-9)
        mean, covariance = sums.given(jnp.broadcast_to(jnp.asarray(phi), (n, k)))
        precision = np.eye(q) + t.T @ np.linalg.solve(noise, t)
        by_hand = np.linalg.solve(precision, t.T @ np.linalg.solve(noise, value[star, ok] - theta[ok] @ phi))
        np.testing.assert_allclose(mean[star], by_hand, rtol=1e-8)
        np.testing.assert_allclose(covariance[star], np.linalg.inv(precision), rtol=1e-8, atol=1e-12)


@in_float64
def test_the_program_has_them():
    stars, _ = survey(12, 3)
    stars = stars.drop("labels")
    model = Cannon(order=1, label_noise=False, nuisances=(nuisances.Continuum(0.01, 1), nuisances.Velocity(1.0)))
    model = model.bind(survey(40, 0)[0])
    rng = np.random.default_rng(1)
    theta, scatter, v = rng.normal(size=(L, 3)), rng.uniform(0.01, 0.02, L), rng.normal(size=(12, 3))
    labels = CENTRE + SPREAD * rng.normal(size=(12, 2))
    sites = {
        "coefficients": theta, "coefficients_mean": np.zeros(3), "coefficients_covariance": np.eye(3),
        "scatter": scatter, "nuisances": v, "u": model.frame.scaled(labels),
    }  # fmt: skip
    with_v = ln_p(model, stars, sites)
    without = ln_p(model, stars, {**sites, "nuisances": np.zeros((12, 3))})
    phi = np.concatenate([np.ones((12, 1)), model.frame.scaled(labels)], 1)
    shapes = np.concatenate([x.shapes(model.frame, theta) for x in model.nuisances])
    added = np.einsum("nq,nk,qlk->nl", v, phi, shapes)
    value, error = stars["flux"].value, stars["flux"].error
    ok = np.isfinite(value)
    sd = np.hypot(error, scatter)
    by_hand = norm.logpdf(value, phi @ theta.T + added, sd) - norm.logpdf(value, phi @ theta.T, sd)
    expected = by_hand[ok].sum() - 0.5 * (v**2).sum()
    assert with_v - without == pytest.approx(expected, rel=1e-8)


CASES = {
    "continuum": (wiggles(0.01), (nuisances.Continuum(0.01),)),
    "velocity": (shifted(1.0), (nuisances.Velocity(1.0),)),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_hold_where_the_spectra_are_disturbed(posterior, case):
    """Coverage to 4 sd of the binomial; and without the nuisance they do not."""
    disturb, chosen = CASES[case]
    stars, truth = survey(400, 7, disturb)
    stars = stars.drop("labels")
    for inference in (bl.Laplace(), bl.Importance(draws=300)):
        result = bl.infer(posterior, stars, inference, nuisances=chosen, seed=1)
        z = (result.mean - truth) / result.error
        for width, share in ((1, 0.6827), (2, 0.9545)):
            counts = (np.abs(z) < width).sum(0)
            assert (counts >= binom(len(z), share).ppf(norm.cdf(-4))).all()
            assert (counts <= binom(len(z), share).ppf(norm.cdf(4))).all()
    ignored = bl.infer(posterior, stars, seed=1)
    assert (((ignored.mean - truth) / ignored.error).std(0) > 1.5).any()


def test_a_velocity_stands_in_the_table(posterior):
    rng = np.random.default_rng(11)
    true = rng.normal(0, 1.0, 200)

    stars, _ = survey(200, 8, lambda flux, _: moved(flux, true))
    table = bl.infer(posterior, stars.drop("labels"), nuisances=[nuisances.Velocity(1.0)], seed=0).table()
    assert str(table["velocity"].unit) == "km / s"
    z = (table["velocity"].value - true) / table["velocity_error"].value
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert 0.8 < z.std() < 1.2


def test_clean_spectra_lose_next_to_nothing(posterior):
    stars, truth = survey(300, 9)
    stars = stars.drop("labels")
    plain = bl.infer(posterior, stars, seed=0)
    careful = bl.infer(posterior, stars, nuisances=(nuisances.Continuum(0.01), nuisances.Velocity(1.0)), seed=0)
    assert (careful.error.mean(0) < 1.6 * plain.error.mean(0)).all()
    z = (careful.mean - truth) / careful.error
    assert ((z.std(0) > 0.8) & (z.std(0) < 1.2)).all()


def test_a_star_without_data_stays_flagged(posterior):
    stars, _ = survey(4, 10)
    value = stars["flux"].value.copy()
    value[1] = np.nan
    stars = stars.drop("labels").with_block(flux=bl.Block(value, stars["flux"].error, coords=stars["flux"].coords))
    result = bl.infer(posterior, stars, nuisances=(nuisances.Continuum(0.01),), seed=0)
    assert np.isnan(result.mean[1]).all()
    assert np.isfinite(np.delete(result.mean, 1, 0)).all()


def test_what_is_asked_for_in_training_is_kept_in_the_file(tmp_path):
    model = Cannon(
        order=1, label_noise=False, nuisances=(nuisances.Templates(np.ones(L), 0.01), nuisances.Velocity(1.0))
    )
    trained = bl.fit(model, survey(60, 0)[0], seed=0)
    again = bl.load(trained.save(tmp_path / "model.nc"))
    assert again.model.nuisances == trained.model.nuisances
    stars = survey(5, 1)[0].drop("labels")
    np.testing.assert_allclose(bl.infer(again, stars).mean, bl.infer(trained, stars).mean, rtol=1e-10)
    assert "template_0" in bl.infer(again, stars).table().colnames


def test_bad_nuisances_are_refused(posterior):
    stars = survey(5, 1)[0].drop("labels")
    for bad in (
        "continuum",
        [1.0],
        (nuisances.Velocity(1.0), nuisances.Velocity(2.0)),
        (nuisances.Templates(np.ones(7), 1.0),),
    ):
        with pytest.raises(errors.BadInput):
            bl.infer(posterior, stars, nuisances=bad)
    for make in (
        lambda: nuisances.Continuum(-1),
        lambda: nuisances.Velocity(np.nan),
        lambda: nuisances.Broadening("x"),
    ):
        with pytest.raises(errors.BadInput, match="above 0"):
            make()
    blind = survey(60, 0)[0]
    blind = blind.with_block(flux=bl.Block(blind["flux"].value, blind["flux"].error))
    trained = bl.fit(Cannon(order=1, label_noise=False), blind)
    with pytest.raises(errors.BadInput, match="wavelength"):
        bl.infer(trained, blind.drop("labels"), nuisances=(nuisances.Velocity(1.0),))


def test_the_problem_of_a_star_is_no_larger(posterior):
    """Nuisances are integrated out: samplers see the labels alone."""
    model = posterior.model.replace(nuisances=(nuisances.Continuum(0.01),))
    problem = in_float64(prepare)(model, posterior.moments, survey(6, 1)[0].drop("labels"), 0)
    assert problem.n_latent == 2


def test_training_spectra_may_have_them_too():
    """Trained on spectra whose continuum is off, errors hold; where that is not said, coefficients take it up."""
    stars, _ = survey(300, 20, wiggles(0.01))
    test, truth = survey(400, 21, wiggles(0.01))
    chosen = (nuisances.Continuum(0.01),)
    aware = bl.fit(Cannon(order=2, label_noise=False, nuisances=chosen), stars, seed=0)
    assert aware.info["converged"]
    result = bl.infer(aware, test.drop("labels"), seed=0)
    z = (result.mean - truth) / result.error
    assert ((z.std(0) > 0.85) & (z.std(0) < 1.2)).all()
    unaware = bl.fit(Cannon(order=2, label_noise=False), stars, seed=0)
    assert np.nanmedian(aware.moments.scatter) < 0.5 * np.nanmedian(unaware.moments.scatter)
    rms = [np.sqrt(((bl.infer(p, test.drop("labels")).mean - truth) ** 2).mean(0)) for p in (aware, unaware)]
    assert (rms[0] < 0.8 * rms[1]).all()


def test_trainings_that_do_not_know_them_refuse(tmp_path):
    stars, _ = survey(60, 0)
    model = Cannon(order=1, label_noise="joint", nuisances=(nuisances.Continuum(0.01),))
    for inference in (bl.Gibbs(chains=1, draws=5, warmup=5), bl.SVI(steps=10)):
        with pytest.raises(errors.CannotDo, match="nuisances"):
            bl.fit(model, stars, inference, seed=0)
